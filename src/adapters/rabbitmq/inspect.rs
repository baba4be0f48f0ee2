//! A look at the broker, for `fanfold doctor`.

use super::topology::{self, parked_name};
use super::{RabbitOptions, fair};
use crate::adapters::finding::Finding;
use crate::domain::Lane;
use crate::error::{Error, Result};

const PART: &str = "queue";

/// Connects, declares the queues, asks for their depths; what fails is a finding, not an error.
pub async fn inspect(options: &RabbitOptions) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = look(options, &mut findings).await {
        findings.push(Finding::wrong(PART, error.to_string(), advice(&error)));
    }
    findings
}

async fn look(options: &RabbitOptions, findings: &mut Vec<Finding>) -> Result<()> {
    let connection = topology::connect(options, "doctor").await?;
    findings.push(Finding::fine(PART, "the broker can be reached"));
    let opening = connection.create_channel();
    let channel = topology::within(options.timeout, "open a channel", opening).await?;
    topology::declare(&channel, options).await?;
    findings.push(Finding::fine(PART, format!("the queues {}.* are as this release needs them", options.prefix)));
    for lane in Lane::ALL {
        let depths = topology::lane_depths(&channel, options, lane).await?;
        let (depth, fullest) = (depths.iter().sum::<u64>(), depths.iter().max().copied().unwrap_or(0));
        let share = fair::share(options.tasks_max, options.fair_queues);
        let what = format!(
            "lane {}: {depth} of {} tasks in {} queues, at most {fullest} of {share} in one",
            lane.name(),
            options.tasks_max,
            depths.len()
        );
        findings.push(if depth as usize * 2 > options.tasks_max {
            Finding::warning(PART, what, "more than half full: start more fan-out workers, see `fanfold fanout status`")
        } else {
            Finding::fine(PART, what)
        });
    }
    let parked = topology::depth(&channel, options, parked_name(options)).await?;
    if parked > 0 {
        let what = format!("messages that are set aside: {parked}");
        findings.push(Finding::warning(
            PART,
            what,
            "see `fanfold parked list`: no worker could read or survive them; their posts stay pending",
        ));
    }
    Ok(())
}

fn advice(error: &Error) -> &'static str {
    match error.code() {
        "queue_mismatch" => {
            "the arguments come from fanout.queue_tasks_max and rabbitmq.deliveries_max; `rabbitmqctl delete_queue` \
             deletes it"
        }
        "queue_refused" => {
            "correct user, password and virtual host in rabbitmq.url, or let the user configure, write and read there \
             (`rabbitmqctl set_permissions`)"
        }
        "invalid_amqp_url" => "correct rabbitmq.url",
        "tls_not_built" | "tls_unusable" => "correct rabbitmq.url (amqps://) and rabbitmq.tls_ca_file",
        _ if error.to_string().contains("certificate") => "correct rabbitmq.tls_ca_file, or the broker's certificate",
        _ => "start the broker, or check the address in rabbitmq.url; posts are accepted meanwhile",
    }
}
