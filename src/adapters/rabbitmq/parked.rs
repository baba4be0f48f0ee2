//! What the broker has set aside: looked at, taken over, or left where it is.

use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection};

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
    tag: u64,
}

/// Messages in hand. Those that are not removed stay set aside.
#[derive(Debug)]
pub struct SetAside {
    /// The oldest first.
    pub messages: Vec<SetAsideMessage>,
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
            messages.push(read(message));
        }
        Ok(Self { messages, channel, connection })
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
}

fn read(message: BasicGetMessage) -> SetAsideMessage {
    let died = died_of(message.properties.headers().as_ref());
    let (task, reason) = match codec::decode(&message.data) {
        Ok(task) => (Some(task), format!("set aside by the broker: {died}")),
        Err(error) => (None, error.to_string()),
    };
    let unsurvived = died == "delivery_limit";
    SetAsideMessage { task, reason, unsurvived, tag: message.delivery_tag }
}

/// Why the broker moved a message, in its own word: `delivery_limit` or `rejected`.
fn died_of(headers: Option<&FieldTable>) -> String {
    let reason = headers.and_then(|headers| headers.inner().get("x-first-death-reason"));
    match reason {
        Some(AMQPValue::LongString(reason)) => reason.to_string(),
        _ => "for no reason it tells".to_owned(),
    }
}
