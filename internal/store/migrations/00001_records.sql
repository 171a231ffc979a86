-- +goose Up
CREATE TABLE orgs (
    id               TEXT PRIMARY KEY,
    name             TEXT NOT NULL,
    operator_user_id TEXT NOT NULL,
    created_at       BIGINT NOT NULL
);

CREATE TABLE projects (
    id         TEXT PRIMARY KEY,
    org_id     TEXT NOT NULL,
    name       TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (org_id, name)
);
CREATE INDEX projects_newest ON projects (org_id, created_at, id);

CREATE TABLE api_keys (
    id                 TEXT PRIMARY KEY,
    org_id             TEXT NOT NULL,
    name               TEXT NOT NULL,
    prefix             TEXT NOT NULL,
    last4              TEXT NOT NULL,
    hash               TEXT NOT NULL UNIQUE,
    project_ids        TEXT NOT NULL,
    scopes             TEXT NOT NULL,
    created_by_user_id TEXT NOT NULL,
    created_at         BIGINT NOT NULL,
    revoked_at         BIGINT NOT NULL,
    last_used_at       BIGINT NOT NULL
);
CREATE INDEX api_keys_newest ON api_keys (org_id, created_at, id);

CREATE TABLE sandboxes (
    id                  TEXT PRIMARY KEY,
    org_id              TEXT NOT NULL,
    project_id          TEXT NOT NULL,
    status              TEXT NOT NULL,
    template_id         TEXT NOT NULL,
    template_slug       TEXT NOT NULL,
    template_version    TEXT NOT NULL,
    template_version_id TEXT NOT NULL,
    ttl_ms              BIGINT NOT NULL,
    expires_at          BIGINT NOT NULL,
    created_at          BIGINT NOT NULL,
    ready_at            BIGINT NOT NULL,
    destroyed_at        BIGINT NOT NULL,
    destroyed_reason    TEXT NOT NULL,
    compute_multiplier  DOUBLE PRECISION NOT NULL,
    runtime_id          TEXT NOT NULL,
    failure_cause       TEXT NOT NULL,
    metered_ms          BIGINT NOT NULL,
    network             TEXT NOT NULL,
    resources           TEXT NOT NULL,
    metadata            TEXT NOT NULL
);
CREATE INDEX sandboxes_newest ON sandboxes (org_id, created_at, id);
CREATE INDEX sandboxes_project ON sandboxes (org_id, project_id, created_at, id);
-- Everyday lists and timers touch active sandboxes only, however many ended ones
-- the table remembers. It also holds what counting them needs.
CREATE INDEX sandboxes_active ON sandboxes (org_id, created_at, id, project_id, status)
    WHERE status NOT IN ('destroyed', 'failed');

-- One row for each metadata pair; pair is a digest of key and value, which keeps
-- the index narrow and free of what an engine cannot store in a text.
CREATE TABLE sandbox_metadata (
    org_id     TEXT NOT NULL,
    pair       TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    sandbox_id TEXT NOT NULL,
    PRIMARY KEY (org_id, pair, created_at, sandbox_id)
);

CREATE TABLE commands (
    id                 TEXT PRIMARY KEY,
    sandbox_id         TEXT NOT NULL,
    org_id             TEXT NOT NULL,
    project_id         TEXT NOT NULL,
    status             TEXT NOT NULL,
    command            BYTEA NOT NULL,
    cwd                BYTEA NOT NULL,
    cancel_mode        TEXT NOT NULL,
    canceled_at        BIGINT NOT NULL,
    exit_code          BIGINT,
    stdout_truncated   SMALLINT NOT NULL,
    stderr_truncated   SMALLINT NOT NULL,
    created_at         BIGINT NOT NULL,
    started_at         BIGINT NOT NULL,
    finished_at        BIGINT NOT NULL,
    duration_ms        BIGINT NOT NULL,
    timeout_ms         BIGINT NOT NULL,
    collect            TEXT NOT NULL,
    collect_on         TEXT NOT NULL,
    collect_status     TEXT NOT NULL,
    collect_errors     TEXT NOT NULL,
    artifact_ids       TEXT NOT NULL,
    killed_reason      TEXT NOT NULL,
    termination_signal TEXT NOT NULL,
    failure_cause      TEXT NOT NULL,
    log_dropped        SMALLINT NOT NULL DEFAULT 0,
    -- Large and seldom read, so last in the row: what an engine keeps beside the
    -- row is then not touched by lists.
    stdout             BYTEA NOT NULL,
    stderr             BYTEA NOT NULL
);
CREATE INDEX commands_newest ON commands (sandbox_id, created_at, id);
CREATE INDEX commands_active ON commands (sandbox_id, created_at, id)
    WHERE status IN ('queued', 'starting', 'running');
CREATE INDEX commands_retained ON commands (finished_at)
    WHERE log_dropped = 0 AND finished_at > 0;

CREATE TABLE artifacts (
    id                   TEXT PRIMARY KEY,
    org_id               TEXT NOT NULL,
    project_id           TEXT NOT NULL,
    sandbox_id           TEXT NOT NULL,
    command_id           TEXT NOT NULL,
    name                 TEXT NOT NULL,
    object_key           TEXT NOT NULL,
    size_bytes           BIGINT NOT NULL,
    sha256               TEXT NOT NULL,
    content_type         TEXT NOT NULL,
    source_path          BYTEA NOT NULL,
    created_at           BIGINT NOT NULL,
    deleted_at           BIGINT NOT NULL,
    retention_expires_at BIGINT NOT NULL
);
CREATE INDEX artifacts_newest ON artifacts (sandbox_id, created_at, id) WHERE deleted_at = 0;
CREATE INDEX artifacts_retained ON artifacts (retention_expires_at)
    WHERE deleted_at = 0 AND retention_expires_at > 0;

CREATE TABLE uploads (
    id             TEXT PRIMARY KEY,
    org_id         TEXT NOT NULL,
    project_id     TEXT NOT NULL,
    sandbox_id     TEXT NOT NULL,
    path           BYTEA NOT NULL,
    size_bytes     BIGINT NOT NULL,
    sha256         TEXT NOT NULL,
    create_parents SMALLINT NOT NULL,
    overwrite      SMALLINT NOT NULL,
    status         TEXT NOT NULL,
    created_at     BIGINT NOT NULL,
    expires_at     BIGINT NOT NULL
);

CREATE TABLE usage_events (
    id              BIGINT PRIMARY KEY,
    org_id          TEXT NOT NULL,
    project_id      TEXT NOT NULL,
    resource_id     TEXT NOT NULL,
    metric          TEXT NOT NULL,
    amount          DOUBLE PRECISION NOT NULL,
    pricing_version TEXT NOT NULL,
    created_at      BIGINT NOT NULL
);
-- Both hold every column that their sums need.
CREATE INDEX usage_events_period ON usage_events (org_id, created_at, id, metric, amount, project_id);
CREATE INDEX usage_events_resource ON usage_events (resource_id, metric, amount);

CREATE TABLE audit_events (
    org_id        TEXT NOT NULL,
    seq           BIGINT NOT NULL,
    id            TEXT NOT NULL UNIQUE,
    project_id    TEXT NOT NULL,
    actor_kind    TEXT NOT NULL,
    actor_id      TEXT NOT NULL,
    actor_ip      TEXT NOT NULL,
    actor_agent   TEXT NOT NULL,
    action        TEXT NOT NULL,
    resource_type TEXT NOT NULL,
    resource_id   TEXT NOT NULL,
    outcome       TEXT NOT NULL,
    request_id    TEXT NOT NULL,
    created_at    BIGINT NOT NULL,
    details       TEXT NOT NULL,
    prev_hash     TEXT NOT NULL,
    hash          TEXT NOT NULL,
    PRIMARY KEY (org_id, seq)
);
CREATE INDEX audit_events_newest ON audit_events (org_id, created_at, id);
CREATE INDEX audit_events_resource ON audit_events (resource_id, created_at, id);
CREATE INDEX audit_events_action ON audit_events (action, created_at, id);
CREATE INDEX audit_events_actor ON audit_events (actor_id, created_at, id);

-- The last link of each chain: whoever appends takes this row first.
CREATE TABLE audit_heads (
    org_id TEXT PRIMARY KEY,
    seq    BIGINT NOT NULL,
    hash   TEXT NOT NULL
);

CREATE TABLE operations (
    namespace    TEXT PRIMARY KEY,
    fingerprint  TEXT NOT NULL,
    operation_id TEXT NOT NULL,
    owner        TEXT NOT NULL,
    done         SMALLINT NOT NULL,
    status       BIGINT NOT NULL,
    sealed       SMALLINT NOT NULL,
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL,
    body         BYTEA NOT NULL
);
CREATE INDEX operations_expiry ON operations (expires_at);

CREATE TABLE server_secrets (
    name  TEXT PRIMARY KEY,
    value BYTEA NOT NULL
);

-- Never has a row. On PostgreSQL, writers lock it to take turns when they get into
-- each other's way.
CREATE TABLE write_turns (
    turn SMALLINT NOT NULL
);

-- +goose Down
DROP TABLE write_turns;
DROP TABLE server_secrets;
DROP TABLE operations;
DROP TABLE audit_heads;
DROP TABLE audit_events;
DROP TABLE usage_events;
DROP TABLE uploads;
DROP TABLE artifacts;
DROP TABLE commands;
DROP TABLE sandbox_metadata;
DROP TABLE sandboxes;
DROP TABLE api_keys;
DROP TABLE projects;
DROP TABLE orgs;
