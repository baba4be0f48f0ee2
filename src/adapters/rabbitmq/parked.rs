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
    /// How long the broker may take for anything.
    timeout: Duration,
    channel: Channel,
    /// Of its own: whatever goes wrong, closing it puts everything back.
    connection: Connection,
}

impl SetAside {
    /// Takes up to `limit` messages in hand.
    pub(super) async fn take(options: &RabbitOptions, limit: u32) -> Result<Self> {
        let connection = topology::connect(options, "parked").await?;
        let channel = within(options.timeout, "open a channel", connection.create_channel()).await?;
        topology::declare(&channel, options).await?;
        let mut messages = Vec::new();
        while messages.len() < limit as usize {
            let queue = topology::parked_name(options);
            let got = channel.basic_get(queue, BasicGetOptions { no_ack: false });
            let Some(message) = within(options.timeout, "show what is set aside", got).await? else { break };
            messages.push(read(message, &options.prefix));
        }
        Ok(Self { messages, timeout: options.timeout, channel, connection })
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
        let confirms = self.channel.confirm_select(ConfirmSelectOptions::default());
        within(self.timeout, "confirm messages", confirms).await?;
        let mut back = Vec::with_capacity(self.messages.len());
        for message in &self.messages {
            back.push(match &message.origin {
                Some(origin) if message.task.is_none() => self.publish(origin, message).await?,
                _ => false,
            });
        }
        let count = back.iter().filter(|back| **back).count();
        self.remove(&back).await?;
        Ok(count)
    }

    /// Publishes a message as it came; whether the broker has taken it.
    async fn publish(&self, queue: &ShortString, message: &SetAsideMessage) -> Result<bool> {
        let persistent = BasicProperties::default().with_delivery_mode(2).with_headers(message.headers.clone());
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
    let headers = codec::own_headers(headers);
    SetAsideMessage {
        task,
        reason,
        unsurvived,
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
