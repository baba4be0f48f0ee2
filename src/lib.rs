//! Fanfold: a fan-out feed service with revisions, push model.
//!
//! A producer posts a notification with an audience; fan-out workers write one inbox row per viewer and bump that
//! viewer's revision; a client compares revisions first and reads its inbox only when something has changed.
//!
//! Dependencies point down: [`http`], [`cli`] and [`service`] call the use cases ([`publish`], [`fanout`], [`relay`],
//! [`reader`], [`marks`]; [`access`] decides who may), those call the [`ports`], and everything speaks the [`domain`]. `ARCHITECTURE.md` has the map.

pub mod access;
pub mod adapters;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod error;
pub mod fanout;
pub mod faults;
pub mod files;
pub mod flights;
pub mod handover;
pub mod http;
pub mod intents;
pub mod leases;
pub mod marks;
pub mod parked;
pub mod ports;
pub mod publish;
pub mod reader;
pub mod relay;
pub mod service;
pub mod telemetry;
pub mod trace;
pub mod tuning;
pub mod turns;
pub mod withdrawals;

/// glibc's allocator gives every thread its own arena and keeps there what was free once: after a few compactions 80 of
/// 200 MiB were free and yet resident, and each new peak added to them. This one gives back what stays free.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
