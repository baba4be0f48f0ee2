//! What the service answers, as far as the commands look at it. Unknown fields are ignored, as the interface asks of
//! every client, and what is only passed on stays JSON.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// A count that stops at its cap.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Count {
    /// The number.
    pub value: u32,
    /// There are more than that.
    pub capped: bool,
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.value, if self.capped { "+" } else { "" })
    }
}

/// Who did what a post tells.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Actor {
    /// The actor's id.
    pub id: String,
}

/// An inbox item.
#[derive(Clone, Debug, Deserialize)]
pub struct Item {
    /// Which post.
    pub post_id: String,
    /// What kind of notification.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Who did it.
    #[serde(default)]
    pub actor: Option<Actor>,
    /// The payload.
    #[serde(default)]
    pub data: Value,
    /// When it was published.
    #[serde(default)]
    pub published_at: String,
    /// When it was first shown.
    #[serde(default)]
    pub seen_at: Option<String>,
    /// When it was opened.
    #[serde(default)]
    pub read_at: Option<String>,
    /// When it was put away.
    #[serde(default)]
    pub archived_at: Option<String>,
}

/// A page of an inbox.
#[derive(Clone, Debug, Deserialize)]
pub struct Page {
    /// What the client holds after this page.
    #[serde(default)]
    pub token: Option<String>,
    /// The items, newest first.
    #[serde(default)]
    pub items: Vec<Value>,
    /// Where the next page begins; absent at the end.
    #[serde(default)]
    pub next_cursor: Option<String>,
    /// Older items were left out.
    #[serde(default)]
    pub truncated: bool,
    /// Items not yet seen.
    #[serde(default)]
    pub unseen_count: Option<Count>,
    /// Items not yet read.
    #[serde(default)]
    pub unread_count: Option<Count>,
}

/// A page of which only the posts' ids matter.
#[derive(Clone, Debug, Deserialize)]
pub struct IdPage {
    /// What the client holds after this page.
    #[serde(default)]
    pub token: Option<String>,
    /// The items.
    pub items: Vec<OnlyId>,
    /// Where the next page begins.
    #[serde(default)]
    pub next_cursor: Option<String>,
    /// Older items were left out.
    #[serde(default)]
    pub truncated: bool,
}

/// An item of which only the post's id matters.
#[derive(Clone, Debug, Deserialize)]
pub struct OnlyId {
    /// Which post.
    #[serde(deserialize_with = "id")]
    pub post_id: Uuid,
}

fn id<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Uuid, D::Error> {
    let text = Cow::<'de, str>::deserialize(from)?;
    Uuid::try_parse(&text).map_err(serde::de::Error::custom)
}

/// What has changed since a token.
#[derive(Clone, Debug, Deserialize)]
pub struct Changes<T = Item> {
    /// What the client holds after applying it.
    #[serde(default)]
    pub token: Option<String>,
    /// New and changed items.
    #[serde(default = "Vec::new")]
    pub upserted: Vec<T>,
    /// Posts that are gone.
    #[serde(default)]
    pub removed: Vec<String>,
    /// Items not yet seen.
    #[serde(default)]
    pub unseen_count: Option<Count>,
    /// Items not yet read.
    #[serde(default)]
    pub unread_count: Option<Count>,
}

/// The answer to a publish.
#[derive(Clone, Debug, Deserialize)]
pub struct Accepted {
    /// The post's id; none for a dry run.
    #[serde(default)]
    pub post_id: Option<String>,
    /// For whom it is.
    #[serde(default)]
    pub audience: Audience,
}

/// For whom a post is.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Audience {
    /// How many distinct viewers.
    #[serde(default)]
    pub size: u64,
    /// How many were named more than once.
    #[serde(default)]
    pub duplicates: u64,
}

/// A post, as its producer sees it.
#[derive(Clone, Debug, Deserialize)]
pub struct PostStatus {
    /// `live`, `retracted` or `expired`.
    #[serde(default)]
    pub state: String,
    /// How far it is spread.
    pub fanout: Fanout,
}

/// How far a post is spread.
#[derive(Clone, Debug, Deserialize)]
pub struct Fanout {
    /// `running` or `done`.
    pub status: String,
    /// Viewers in the audience.
    #[serde(default)]
    pub total: u64,
    /// Rows written.
    #[serde(default)]
    pub written: u64,
    /// Viewers left out on purpose.
    #[serde(default)]
    pub skipped: u64,
    /// Rows given up.
    #[serde(default)]
    pub failed: u64,
}

impl Fanout {
    /// Whether nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.status == "done"
    }

    /// How many viewers are settled, one way or the other.
    pub fn settled(&self) -> u64 {
        self.written + self.skipped + self.failed
    }
}

impl Item {
    /// The marks as one word: the strongest that is set.
    pub fn marks(&self) -> &'static str {
        match (&self.archived_at, &self.read_at, &self.seen_at) {
            (Some(_), ..) => "archived",
            (_, Some(_), _) => "read",
            (.., Some(_)) => "seen",
            _ => "new",
        }
    }

    /// A line that tells what the payload is about: its title or the like, else the payload itself.
    pub fn summary(&self) -> Cow<'_, str> {
        let told = ["title", "text", "message", "subject", "name"];
        match told.iter().find_map(|key| self.data.get(key)?.as_str()) {
            Some(text) => Cow::Borrowed(text),
            None if self.data.as_object().is_none_or(serde_json::Map::is_empty) => Cow::Borrowed(""),
            None => Cow::Owned(self.data.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_told_in_a_line() {
        let item = |data: &str| -> Item {
            let text =
                format!(r#"{{"post_id":"p","type":"t","actor":null,"data":{data},"read_at":"x","new_field":1}}"#);
            serde_json::from_str(&text).expect("an item")
        };
        assert_eq!(item(r#"{"title":"Dawn","n":1}"#).summary(), "Dawn");
        assert_eq!(item(r#"{"n":1}"#).summary(), r#"{"n":1}"#);
        assert_eq!(item("{}").summary(), "");
        assert_eq!(item("{}").marks(), "read");
    }

    #[test]
    fn a_page_may_lack_its_token_and_an_end() {
        let page: Page = serde_json::from_str(r#"{"viewer_id":"b","token":null,"items":[]}"#).expect("a page");
        assert!(page.token.is_none() && page.next_cursor.is_none() && !page.truncated);
    }
}
