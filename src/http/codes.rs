//! Every stable error code, in one table: what HTTP answers with, what `/openapi.json` lists, what the tests check.

/// One code.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// The stable name; never changes its meaning.
    pub code: &'static str,
    /// The HTTP status it comes with.
    pub status: u16,
    /// A short summary, the same for every occurrence.
    pub title: &'static str,
    /// What happened, and what to do about it.
    pub meaning: &'static str,
}

const fn code(code: &'static str, status: u16, title: &'static str, meaning: &'static str) -> Code {
    Code { code, status, title, meaning }
}

/// What a request can be answered with, by status.
pub const CODES: &[Code] = &[
    code("malformed_json", 400, "Malformed JSON", "The body is not JSON; the detail says where."),
    code("malformed_query", 400, "Malformed query string", "A query parameter does not decode to UTF-8 text."),
    code("malformed_path", 400, "Malformed path", "A path segment does not decode to UTF-8 text."),
    code("body_incomplete", 400, "Body incomplete", "The connection broke while the body was read."),
    code("invalid_cursor", 400, "Invalid cursor", "The cursor is not one of this service, or of the other list."),
    code("invalid_token", 400, "Invalid token", "The revision token is not one of this service."),
    code("invalid_if_match", 400, "Invalid If-Match", "If-Match must be * or one entity tag."),
    code(
        "credentials_malformed",
        401,
        "Malformed credentials",
        "Authorization holds neither a key nor a viewer's token.",
    ),
    code("credentials_missing", 401, "Credentials missing", "Send a key or a viewer's token in Authorization."),
    code("key_expired", 401, "Key expired", "The key has come to its end, or was replaced by rotation."),
    code("key_invalid", 401, "Invalid key", "There is no such key, or it has another secret."),
    code("key_revoked", 401, "Key revoked", "The key was taken back."),
    code("viewer_token_expired", 401, "Viewer token expired", "The token's exp has passed: fetch a new one."),
    code("viewer_token_invalid", 401, "Invalid viewer token", "The token cannot be trusted; the detail says why."),
    code("viewer_token_not_yet_valid", 401, "Viewer token not yet valid", "The token's nbf lies ahead."),
    code("scope_missing", 403, "Scope missing", "The key does not have the scope that this takes."),
    code("viewer_mismatch", 403, "Another viewer's inbox", "A viewer's token opens that viewer's inbox alone."),
    code("key_not_found", 404, "No such key", "There is no key of this id."),
    code("route_not_found", 404, "No such route", "Nothing is served under this path."),
    code("post_not_found", 404, "No such post", "There is no such post, or it is not yours."),
    code("item_not_found", 404, "No such item", "The inbox has no such item, or has it no longer."),
    code("method_not_allowed", 405, "Method not allowed", "The path takes other methods; see Allow."),
    code("body_timeout", 408, "Body timeout", "The body took longer to arrive than http.body_read_timeout_ms."),
    code("access_off", 409, "Access control off", "There are no keys and tokens to deal with: see access.mode."),
    code("key_ended", 409, "Key ended", "A key that works no more cannot be rotated."),
    code("no_signing_key", 409, "No signing key", "No shared secret is configured that tokens could be signed with."),
    code("too_many_keys", 409, "Too many keys", "As many keys work as may; revoke some."),
    code("post_retracted", 409, "Post retracted", "A retracted post can no longer be edited."),
    code("too_many_versions", 409, "Too many versions", "The post has been edited as often as a post can be."),
    code(
        "resync_required",
        410,
        "Resync required",
        "What changed since the token cannot be told; `reason` says why. Read the inbox afresh (see Location, after \
         Retry-After) and replace the copy, never merge.",
    ),
    code("version_mismatch", 412, "Version mismatch", "The post is at another version than If-Match says."),
    code("body_too_large", 413, "Body too large", "The body has more bytes than the limit."),
    code("unsupported_media_type", 415, "Unsupported media type", "Content-Type must be the one this route takes."),
    code("ambiguous_expiry", 422, "Ambiguous expiry", "Only one of ttl_seconds and expires_at may be given."),
    code("ambiguous_marks", 422, "Ambiguous marks", "Exactly one of post_ids and through must be given."),
    code("audience_too_large", 422, "Audience too large", "The audience names more viewers than the limit."),
    code("batch_too_large", 422, "Batch too large", "The batch has more posts than the limit."),
    code("data_too_deep", 422, "Data too deep", "The data nests deeper than the limit."),
    code("data_too_large", 422, "Data too large", "The data has more bytes, as JSON text, than the limit."),
    code("duplicate_field", 422, "Duplicate field", "A field stands twice in one object."),
    code("empty_audience", 422, "Empty audience", "The audience must name at least one viewer."),
    code("empty_batch", 422, "Empty batch", "The batch must have at least one post."),
    code("empty_marks", 422, "Empty marks", "post_ids must name at least one post."),
    code("empty_query", 422, "Empty query", "The query must name at least one viewer."),
    code("expiry_in_past", 422, "Expiry in the past", "The post would expire before it is published."),
    code("expiry_too_far", 422, "Expiry too far ahead", "The post would live longer than the limit (seconds)."),
    code(
        "idempotency_key_reused",
        422,
        "Idempotency key reused",
        "The key was used before with another request; a new request needs a new key.",
    ),
    code("invalid_idempotency_key", 422, "Invalid idempotency key", "The key is empty, too long or not readable."),
    code("invalid_limit", 422, "Invalid limit", "The page size is out of bounds."),
    code("invalid_mark", 422, "Invalid mark", "A mark is one of seen, read and archived."),
    code("invalid_post_id", 422, "Invalid post id", "A post id is a UUID of version 7."),
    code("invalid_producer_id", 422, "Invalid producer id", "1 to 128 bytes without control characters."),
    code("invalid_time", 422, "Invalid time", "A time is written as RFC 3339 has it, such as 2026-11-22T10:00:00Z."),
    code("invalid_value", 422, "Invalid value", "A field has the wrong type, length or content."),
    code(
        "invalid_viewer_id",
        422,
        "Invalid viewer id",
        "1 to 128 bytes without control characters, percent-encoded in paths; not . or ..",
    ),
    code("invalid_wait", 422, "Invalid wait", "A wait is a whole number of seconds up to the limit."),
    code("missing_field", 422, "Missing field", "A field that must be there is not."),
    code("missing_parameter", 422, "Missing parameter", "A query parameter that must be there is not."),
    code("query_too_large", 422, "Query too large", "The query names more viewers than the limit."),
    code("repeated_parameter", 422, "Repeated parameter", "A query parameter stands twice."),
    code("too_many_marks", 422, "Too many marks", "post_ids names more posts than the limit."),
    code("unknown_field", 422, "Unknown field", "The body has a field that this route does not know."),
    code("unknown_parameter", 422, "Unknown parameter", "The query has a parameter that this route does not know."),
    code("unsupported_field", 422, "Unsupported field", "The field is planned but not built yet."),
    code("precondition_required", 428, "Precondition required", "An edit needs If-Match: the version, or *."),
    code("quota_exceeded", 429, "Quota exceeded", "More than the quota allows; nothing was done. See Retry-After."),
    code("credentials_too_large", 431, "Credentials too large", "Authorization has more bytes than the limit."),
    code("internal", 500, "Internal error", "A bug or a broken machine; the log has it under request_id."),
    code("store_corrupt", 500, "Store corrupt", "The store has bytes that this release cannot read."),
    code("not_ready", 503, "Not ready", "A dependency cannot be used now."),
    code("overloaded", 503, "Overloaded", "The bodies of other requests fill http.bodies_bytes_max; see Retry-After."),
    code("revisions_unavailable", 503, "Revisions unavailable", "The revisions cannot be used now; pages still work."),
    code("store_unavailable", 503, "Store unavailable", "The database cannot be used now; try again later."),
    code("store_failed", 503, "Store unavailable", "The store cannot be used now; try again after Retry-After."),
    code("too_many_waiters", 503, "Too many waiters", "As many requests wait for changes as may."),
    code("storage_full", 507, "Storage full", "The disk is nearly full: writes are refused, reads go on."),
];

/// What only a start can fail with: never answered over HTTP (the status is none), told on standard error.
pub const STARTUP_CODES: &[Code] = &[
    code("address_in_use", 0, "Address in use", "Another process listens on http.listen."),
    code("cannot_listen", 0, "Cannot listen", "http.listen cannot be bound."),
    code("chunk_not_found", 0, "No such chunk", "The post has no chunk of this number."),
    code("config_not_found", 0, "Configuration not found", "The configuration file cannot be read."),
    code("data_locked", 0, "Data folder locked", "Another process uses the data folder."),
    code("data_newer", 0, "Data folder too new", "A newer release has written the data folder."),
    code("data_unusable", 0, "Data folder unusable", "The data folder cannot be created, read or written."),
    code("file_unusable", 0, "File unusable", "A file that the configuration names cannot be read."),
    code("invalid_config", 0, "Invalid configuration", "A setting is out of its bounds."),
    code("invalid_jwks", 0, "Invalid token keys", "The keys of viewers' tokens cannot be used; the detail says which."),
    code("invalid_tls", 0, "Invalid certificate", "The certificate and its key cannot be used."),
    code(
        "listen_beyond_loopback",
        0,
        "Listening beyond loopback",
        "It needs access control, or the flag that says insecure.",
    ),
    code("secret_file_exposed", 0, "Secret file exposed", "Others can read a file that holds a secret."),
    code("invalid_amqp_url", 0, "Invalid broker address", "The URL of the message broker cannot be used."),
    code("invalid_datacenter", 0, "Invalid data centre", "The name of the data centre cannot be used."),
    code("invalid_keyspace", 0, "Invalid keyspace", "The name of the keyspace cannot be used."),
    code("invalid_redis_url", 0, "Invalid Redis address", "The URL of Redis cannot be used."),
    code("invalid_replication", 0, "Invalid replication", "The replication factor cannot be used."),
    code("queue_unavailable", 0, "Queue unavailable", "The message broker cannot be reached."),
    code("fence_unknown", 0, "No fence yet", "No process has registered a life of Redis yet."),
    code("not_a_cluster", 0, "Not a cluster", "The command is for cluster mode."),
    code("tuning_contended", 0, "Tuning contended", "Others change the tuning at the same time."),
    code("queue_mismatch", 0, "Queue mismatch", "A queue is there with other arguments; the detail says what to do."),
    code("queue_refused", 0, "Queue refused", "The message broker does not take the user of rabbitmq.url."),
    code("schema_changed", 0, "Schema changed", "A schema file that was applied has been changed since."),
    code("schema_disagreement", 0, "Schema disagreement", "The nodes of the database do not agree on the schema."),
    code("schema_locked", 0, "Schema locked", "Another process migrates, and did not finish in time."),
    code("schema_missing", 0, "Schema missing", "The keyspace has no schema yet: migrate first."),
    code("schema_newer", 0, "Schema too new", "A newer release has migrated the keyspace."),
    code("schema_older", 0, "Schema too old", "The keyspace must be migrated first."),
    code("schema_unusable", 0, "Schema unusable", "The schema is not what this release expects."),
    code(
        "tls_not_built",
        0,
        "No TLS in this build",
        "Build with the feature tls to encrypt connections to the backends.",
    ),
    code("tls_unusable", 0, "TLS unusable", "The file of authorities cannot be used."),
    code("too_few_files", 0, "Too few open files", "The limit of open files leaves no room for connections."),
    code("unknown_config_key", 0, "Unknown configuration key", "The detail names the nearest known one."),
];

/// Why a client must read its inbox afresh, and what to tell it.
pub const REASONS: &[(&str, &str)] = &[
    ("fence", "the revisions have started a new life since the token was handed out"),
    ("refresh", "the token has reached the end of its life"),
    ("too_old", "more has changed since the token than is remembered"),
    ("unknown_revision", "the inbox's revision is not one that this token can be compared with"),
];

/// The entry of `code`, if a request can be answered with it.
pub fn find(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|known| known.code == code)
}
