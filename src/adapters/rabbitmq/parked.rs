//! What the broker has set aside: looked at, taken over, or left where it is.

use std::time::Duration;

use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection};

use super::topology::{self, cannot, within};
use super::{RabbitOptions, codec};
use crate::domain::Task;
use crate::error::Result;

/// A message that was set aside.
#[derive(Debug)]
pub struct SetAsideMessage {
    /// The task; `None` if this release cannot read it.
    pub task: Option<Task>,
    /// Why it was set aside.
    pub reason: String,
    /// Workers took it again and again and never finished it. Otherwise one could not read it, which another may.
    pub unsurvived: bool,
    /// It came to this after its last chance.
    last_chance: bool,
    /// The queue of ours that it was set aside from; `None` if the broker does not tell.
    origin: Option<ShortString>,
    bytes: Vec<u8>,
    headers: FieldTable,
    tag: u64,
}

/// Messages in hand. Those that are not removed stay set aside.
#[derive(Debug)]
pub struct SetAside {
    /// The oldest first.
    pub messages: Vec<SetAsideMessage>,
    /// How many were met that this release cannot read, and passed over.
    pub passed_over: u64,
    /// How long the broker may take for anything.
    timeout: Duration,
    channel: Channel,
    /// Of its own: whatever goes wrong, closing it puts everything back.
    connection: Connection,
}

impl SetAside {
    /// Takes up to `limit` messages in hand: any, or only those that this release can read.
    pub(super) async fn take(options: &RabbitOptions, limit: u32, readable: bool) -> Result<Self> {
        let connection = topology::connect(options, "parked").await?;
        let channel = within(options.timeout, "open a channel", connection.create_channel()).await?;
        topology::declare(&channel, options).await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        within(options.timeout, "confirm messages", confirms).await?;
        let (mut messages, mut passed_over) = (Vec::new(), 0);
        while messages.len() < limit as usize {
            let queue = topology::parked_name(options);
            let got = channel.basic_get(queue, BasicGetOptions { no_ack: false });
            let Some(message) = within(options.timeout, "show what is set aside", got).await? else { break };
            let message = read(message, &options.prefix);
            // It is not kept, but in hand until the connection is closed: so the next one is another.
            if readable && message.task.is_none() {
                passed_over += 1;
            } else {
                messages.push(message);
            }
        }
        Ok(Self { messages, passed_over, timeout: options.timeout, channel, connection })
    }

    /// Removes those whose place in `remove` is true, and leaves the others.
    pub async fn remove(self, remove: &[bool]) -> Result<()> {
        let broken = |error| cannot("what is set aside could not be sorted").with_source(error);
        for (message, remove) in self.messages.iter().zip(remove) {
            if *remove {
                self.channel.basic_ack(message.tag, BasicAckOptions::default()).await.map_err(broken)?;
            } else {
                let back = BasicNackOptions { requeue: true, multiple: false };
                self.channel.basic_nack(message.tag, back).await.map_err(broken)?;
            }
        }
        self.connection.close(200, "sorted".into()).await.map_err(broken)
    }

    /// Puts those that this release cannot read back where they were set aside from, for a worker of the release that
    /// wrote them, and leaves the others. One is removed here when the broker has confirmed it there. Tells how many.
    pub async fn put_back(self) -> Result<usize> {
        let mut back = Vec::with_capacity(self.messages.len());
        for message in &self.messages {
            back.push(match &message.origin {
                Some(origin) if message.task.is_none() => {
                    self.publish(origin, message, message.headers.clone()).await?
                }
                _ => false,
            });
        }
        let count = back.iter().filter(|back| **back).count();
        self.remove(&back).await?;
        Ok(count)
    }

    /// Gives a task that no worker survived its last chance: back where it was set aside from, its deliveries counted
    /// afresh. `false` if it has had that chance, or nobody knows where it came from.
    ///
    /// A task that merely was at hand is given back, and each time counts as a delivery, whenever its worker stops, is
    /// paused or dies of a neighbour: it may well be fine. A lane that is full does not take it; then the relay drives it.
    pub async fn try_again(&self, message: &SetAsideMessage) -> Result<bool> {
        let Some(origin) = message.origin.as_ref().filter(|_| !message.last_chance) else { return Ok(false) };
        self.publish(origin, message, codec::with_last_chance(message.headers.clone())).await?;
        Ok(true)
    }

    /// Publishes a message with these headers; whether the broker has taken it.
    async fn publish(&self, queue: &ShortString, message: &SetAsideMessage, headers: FieldTable) -> Result<bool> {
        let persistent = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
        let sending = self.channel.basic_publish("".into(), queue.clone(), mandatory, &message.bytes, persistent);
        let confirm = within(self.timeout, "take a message", sending).await?;
        let confirmed = within(self.timeout, "confirm a message", confirm).await?;
        Ok(matches!(confirmed, Confirmation::Ack(None)))
    }
}

fn read(message: BasicGetMessage, prefix: &str) -> SetAsideMessage {
    let headers = message.properties.headers().as_ref();
    // Why the broker moved it, in its own word: `delivery_limit` or `rejected`.
    let died = header(headers, "x-first-death-reason").unwrap_or_else(|| "for no reason it tells".to_owned());
    let (task, reason) = match codec::decode(&message.data) {
        Ok(task) => (Some(task), format!("set aside by the broker: {died}")),
        Err(error) => (None, error.to_string()),
    };
    let unsurvived = died == "delivery_limit";
    let ours = |queue: &String| queue.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
    let origin = header(headers, "x-first-death-queue").filter(ours).map(Into::into);
    let last_chance = codec::is_last_chance(headers);
    let headers = codec::own_headers(headers);
    SetAsideMessage {
        task,
        reason,
        unsurvived,
        last_chance,
        origin,
        headers,
        tag: message.delivery_tag,
        bytes: message.delivery.data,
    }
}

/// A header as text.
fn header(headers: Option<&FieldTable>, name: &str) -> Option<String> {
    match headers?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        _ => None,
    }
}
