-- A small tenant for throw-away databases, with the corners that feeds and keys must get right.
-- Every id, key and secret is made up and public.
SET TIME ZONE 'UTC';
BEGIN;

INSERT INTO "Organization" (id, slug, title, "updatedAt") VALUES
    ('org_acme',  'acme-1',  'Acme',  now()),
    ('org_rival', 'rival-1', 'Rival', now());

-- The third project is deleted: its keys open nothing.
INSERT INTO "Project" (id, "organizationId", name, slug, "externalRef", engine, "updatedAt", "deletedAt") VALUES
    ('project_shop',   'org_acme',  'Shop',   'shop-1',   'proj_shop0000000000000000', 'V2', now(), NULL),
    ('project_rival',  'org_rival', 'Rival',  'rival-1',  'proj_rival000000000000000', 'V2', now(), NULL),
    ('project_closed', 'org_acme',  'Closed', 'closed-1', 'proj_closed00000000000000', 'V2', now(), now());

INSERT INTO "OrgMember" (id, "organizationId", "userId", role, "updatedAt") VALUES
    ('member_ada', 'org_acme', 'user_ada', 'ADMIN', now());

-- Branches come after their parents. Callers of a branch use the parent's key and name the branch.
INSERT INTO "RuntimeEnvironment" (id, type, slug, shortcode, "apiKey", "pkApiKey", "organizationId", "projectId",
    "orgMemberId", "isBranchableEnvironment", "parentEnvironmentId", "branchName", "archivedAt", "updatedAt") VALUES
    ('env_prod', 'PRODUCTION', 'prod', 'prod', 'tr_prod_runwireProduction0000', 'pk_prod_runwireProduction0000',
        'org_acme', 'project_shop', NULL, false, NULL, NULL, NULL, now()),
    ('env_dev', 'DEVELOPMENT', 'dev', 'dev', 'tr_dev_runwireDevelopment0000', 'pk_dev_runwireDevelopment0000',
        'org_acme', 'project_shop', 'member_ada', false, NULL, NULL, NULL, now()),
    ('env_preview', 'PREVIEW', 'preview', 'preview', 'tr_preview_runwirePreview0000', 'pk_preview_runwirePreview0000',
        'org_acme', 'project_shop', NULL, true, NULL, NULL, NULL, now()),
    ('env_rival', 'PRODUCTION', 'prod', 'prod', 'tr_prod_rivalProduction000000', 'pk_prod_rivalProduction000000',
        'org_rival', 'project_rival', NULL, false, NULL, NULL, NULL, now()),
    ('env_closed', 'PRODUCTION', 'prod', 'prod', 'tr_prod_closedProject00000000', 'pk_prod_closedProject00000000',
        'org_acme', 'project_closed', NULL, false, NULL, NULL, NULL, now()),
    ('env_branch', 'PREVIEW', 'preview-checkout', 'branch', 'tr_preview_runwireBranch00000', 'pk_preview_runwireBranch00000',
        'org_acme', 'project_shop', NULL, false, 'env_preview', 'checkout', NULL, now()),
    ('env_branch_archived', 'PREVIEW', 'preview-old', 'oldbranch', 'tr_preview_runwireArchived000', 'pk_preview_runwireArchived000',
        'org_acme', 'project_shop', NULL, false, 'env_preview', 'old', now(), now()),
    ('env_dev_branch', 'DEVELOPMENT', 'dev-try', 'devbranch', 'tr_dev_runwireDevBranch000000', 'pk_dev_runwireDevBranch000000',
        'org_acme', 'project_shop', 'member_ada', false, 'env_dev', 'try', NULL, now());

INSERT INTO "RevokedApiKey" (id, "runtimeEnvironmentId", "apiKey", "expiresAt") VALUES
    ('revoked_in_grace', 'env_prod',    'tr_prod_runwireRotatedAway000',    now() + interval '30 days'),
    ('revoked_expired',  'env_prod',    'tr_prod_runwireRotatedLongAgo0',   now() - interval '1 day'),
    ('revoked_preview',  'env_preview', 'tr_preview_runwireRotatedAway0',   now() + interval '30 days');

-- 24 characters follow `_sk_`.
INSERT INTO api_keys (id, runtime_environment_id, name, key_hash, last_four, scopes, updated_at, expires_at, revoked_at)
SELECT 'apikey_' || name, 'env_prod', name, encode(sha256(key::bytea), 'hex'), right(key, 4), scopes, now(), expires, revoked
FROM (VALUES
    ('admin',      'tr_prod_sk_runwireAdminKey000000001', ARRAY['admin'],     NULL::timestamp,                          NULL::timestamp),
    ('restricted', 'tr_prod_sk_runwireReadRuns000000001', ARRAY['read:runs'], NULL,                                     NULL),
    ('revoked',    'tr_prod_sk_runwireRevoked0000000001', ARRAY['admin'],     NULL,                                     now() AT TIME ZONE 'UTC'),
    ('expired',    'tr_prod_sk_runwireExpired0000000001', ARRAY['admin'],     now() AT TIME ZONE 'UTC' - interval '1 day', NULL)
) AS k (name, key, scopes, expires, revoked);

INSERT INTO "BatchTaskRun" (id, "friendlyId", "runtimeEnvironmentId", status, "runCount", "batchVersion", sealed, "updatedAt") VALUES
    ('cseedbatch000000000000001', 'batch_cseedbatch000000000000001', 'env_prod', 'PROCESSING', 2, 'runengine:v2', true, now());

-- What all runs share, filled in by name so that the list below shows only what tells them apart.
CREATE TEMPORARY TABLE run ON COMMIT DROP AS SELECT * FROM "TaskRun" WITH NO DATA;
INSERT INTO run (id, number, status, "taskIdentifier", payload, "runtimeEnvironmentId", "runTags", "batchId", "createdAt",
    "startedAt", "completedAt", "delayUntil", "usageDurationMs", "costInCents", metadata, output, error, ttl, "realtimeStreams") VALUES
    ('cseedpending0000000000001', 1, 'PENDING', 'hello', '{"n":1}', 'env_prod', '{user:1,org:9}', NULL, now() - interval '50 min',
        NULL, NULL, NULL, 0, 0, NULL, NULL, NULL, '10m', '{}'),
    ('cseedexecuting00000000001', 2, 'EXECUTING', 'hello', '{"n":2}', 'env_prod', '{user:1}', NULL, now() - interval '40 min',
        now() - interval '39 min', NULL, NULL, 0, 0, '{"progress":0.5}', NULL, NULL, NULL, '{ai,logs}'),
    -- characters that array and JSON text must escape, and a double without a short decimal form
    ('cseedcompleted00000000001', 3, 'COMPLETED_SUCCESSFULLY', 'hello', '{"n":3}', 'env_prod',
        ARRAY['user:2', 'with space', 'quote"d', 'back\slash', 'comma,brace{}', 'NULL'], NULL, now() - interval '30 min',
        now() - interval '29 min', now() - interval '28 min', NULL, 61234, 0.1::float8 + 0.2::float8, NULL,
        '{"ok":true,"text":"snowman ☃"}', NULL, NULL, '{}'),
    ('cseedfailed00000000000001', 4, 'COMPLETED_WITH_ERRORS', 'hello', '{"n":4}', 'env_prod', NULL, NULL, now() - interval '20 min',
        now() - interval '19 min', now() - interval '18 min', NULL, 1200, 0.004, NULL, NULL,
        '{"type":"BUILT_IN_ERROR","name":"TypeError","message":"x is not a function","stackTrace":"TypeError: x is not a function\n    at run (hello.ts:3:9)"}',
        NULL, '{}'),
    ('cseeddelayed0000000000001', 5, 'DELAYED', 'hello', '{"n":5}', 'env_prod', '{}', NULL, now() - interval '10 min',
        NULL, NULL, now() + interval '1 hour', 0, 0, NULL, NULL, NULL, NULL, '{}'),
    ('cseedmember00000000000001', 6, 'EXECUTING', 'child', '{"i":0}', 'env_prod', '{user:1}', 'cseedbatch000000000000001',
        now() - interval '5 min', now() - interval '4 min', NULL, NULL, 0, 0, NULL, NULL, NULL, NULL, '{}'),
    ('cseedmember00000000000002', 7, 'DEQUEUED', 'child', '{"i":1}', 'env_prod', '{user:2}', 'cseedbatch000000000000001',
        now() - interval '5 min', NULL, NULL, NULL, 0, 0, NULL, NULL, NULL, NULL, '{}'),
    -- incompressible values stored out of line: later updates stream them as "unchanged"
    ('cseedlarge000000000000001', 8, 'EXECUTING', 'large',
        '{"blob":"' || (SELECT string_agg(md5('payload' || i), '') FROM generate_series(1, 300) i) || '"}',
        'env_prod', '{large}', NULL, now() - interval '3 min', now() - interval '2 min', NULL, NULL, 0, 0, NULL,
        '{"blob":"' || (SELECT string_agg(md5('output' || i), '') FROM generate_series(1, 300) i) || '"}', NULL, NULL, '{}'),
    -- a 26-character run-ops id, which a split deployment keeps in its other database
    ('000000000000000000000seea1', 9, 'PENDING', 'hello', '{"n":9}', 'env_prod', '{user:1}', NULL, now() - interval '1 min',
        NULL, NULL, NULL, 0, 0, NULL, NULL, NULL, NULL, '{}'),
    -- the same tag elsewhere, which must never show in production's feeds
    ('cseeddev00000000000000001', 1, 'EXECUTING', 'hello', '{"env":"dev"}', 'env_dev', '{user:1}', NULL, now() - interval '3 min',
        now() - interval '3 min', NULL, NULL, 0, 0, NULL, NULL, NULL, NULL, '{}'),
    ('cseedbranch00000000000001', 1, 'EXECUTING', 'hello', '{"env":"branch"}', 'env_branch', '{user:1}', NULL, now() - interval '3 min',
        now() - interval '3 min', NULL, NULL, 0, 0, NULL, NULL, NULL, NULL, '{}'),
    ('cseedrival000000000000001', 1, 'EXECUTING', 'hello', '{"env":"rival"}', 'env_rival', '{user:1}', NULL, now() - interval '3 min',
        now() - interval '3 min', NULL, NULL, 0, 0, NULL, NULL, NULL, NULL, '{}');

INSERT INTO "TaskRun" (id, "friendlyId", number, engine, status, "taskIdentifier", payload, queue, "traceId", "spanId",
    "runtimeEnvironmentId", "environmentType", "projectId", "organizationId", "runTags", "batchId",
    "createdAt", "updatedAt", "queuedAt", "delayUntil", "startedAt", "completedAt", ttl,
    "usageDurationMs", "costInCents", "baseCostInCents", metadata, output, error, "realtimeStreamsVersion", "realtimeStreams")
SELECT run.id, 'run_' || run.id, run.number, 'V2', run.status, run."taskIdentifier", run.payload, 'task/' || run."taskIdentifier",
    md5('trace' || run.id), left(md5('span' || run.id), 16),
    env.id, env.type, env."projectId", env."organizationId", run."runTags", run."batchId",
    run."createdAt", coalesce(run."completedAt", run."startedAt", run."createdAt"),
    CASE WHEN run.status <> 'DELAYED' THEN run."createdAt" END, run."delayUntil", run."startedAt", run."completedAt", run.ttl,
    run."usageDurationMs", run."costInCents", 0.0025, run.metadata, run.output, run.error, 'v2', run."realtimeStreams"
FROM run JOIN "RuntimeEnvironment" env ON env.id = run."runtimeEnvironmentId";

INSERT INTO "Session" (id, "friendlyId", "externalId", type, "taskIdentifier", "runtimeEnvironmentId", "environmentType",
    "projectId", "organizationId", tags, "triggerConfig", "currentRunId", "currentRunVersion", "updatedAt") VALUES
    ('cseedsession0000000000001', 'session_cseedsession0000000000001', 'chat-1', 'chat', 'hello', 'env_prod', 'PRODUCTION',
        'project_shop', 'org_acme', '{user:1}', '{"basePayload":{}}', 'cseedexecuting00000000001', 1, now());

INSERT INTO "Waitpoint" (id, "friendlyId", type, "environmentId", "projectId", "idempotencyKey",
    "userProvidedIdempotencyKey", tags, "updatedAt") VALUES
    ('cseedwaitpoint00000000001', 'waitpoint_cseedwaitpoint00000000001', 'MANUAL', 'env_prod', 'project_shop', 'seed-1',
        false, '{user:1}', now());

COMMIT;
