-- The part of a Trigger.dev database that a realtime gateway reads, for throw-away databases.
-- Names, types, nullability and defaults are Trigger.dev's; tables and columns that no gateway
-- looks at are missing. Three things are on purpose:
--
--  * the order of "TaskRun"'s columns is neither that of the main nor that of the run-ops database,
--    and one column was dropped, so whoever maps by position fails here first;
--  * every replica identity is DEFAULT, as the migrations leave it (Electric sets FULL, tests may);
--  * there is no publication and no slot, since making them is the gateway's own work.
SET TIME ZONE 'UTC';
BEGIN;

CREATE TYPE "TaskRunStatus" AS ENUM (
    'PENDING', 'EXECUTING', 'WAITING_TO_RESUME', 'RETRYING_AFTER_FAILURE', 'PAUSED', 'CANCELED',
    'COMPLETED_SUCCESSFULLY', 'COMPLETED_WITH_ERRORS', 'INTERRUPTED', 'SYSTEM_FAILURE', 'CRASHED',
    'WAITING_FOR_DEPLOY', 'DELAYED', 'EXPIRED', 'TIMED_OUT', 'PENDING_VERSION', 'DEQUEUED'
);
CREATE TYPE "BatchTaskRunStatus" AS ENUM ('PENDING', 'COMPLETED', 'ABORTED', 'PROCESSING', 'PARTIAL_FAILED');
CREATE TYPE "RunEngineVersion" AS ENUM ('V1', 'V2');
CREATE TYPE "RuntimeEnvironmentType" AS ENUM ('PRODUCTION', 'STAGING', 'DEVELOPMENT', 'PREVIEW');
CREATE TYPE "OrgMemberRole" AS ENUM ('ADMIN', 'MEMBER');
CREATE TYPE "WaitpointType" AS ENUM ('RUN', 'DATETIME', 'MANUAL', 'BATCH');
CREATE TYPE "WaitpointStatus" AS ENUM ('PENDING', 'COMPLETED');

-- Runs. No foreign key leaves this table in Trigger.dev's main database either.
CREATE TABLE "TaskRun" (
    "friendlyId"             text NOT NULL,
    status                   "TaskRunStatus" NOT NULL DEFAULT 'PENDING',
    "batchId"                text,
    "runTags"                text[],
    "updatedAt"              timestamp(3) NOT NULL,
    metadata                 text,
    "metadataType"           text NOT NULL DEFAULT 'application/json',
    "metadataVersion"        integer NOT NULL DEFAULT 1,
    dropped_on_purpose       bigint,
    "runtimeEnvironmentId"   text NOT NULL,
    id                       text NOT NULL PRIMARY KEY,
    payload                  text NOT NULL,
    "payloadType"            text NOT NULL DEFAULT 'application/json',
    output                   text,
    "outputType"             text NOT NULL DEFAULT 'application/json',
    error                    jsonb,
    "taskIdentifier"         text NOT NULL,
    queue                    text NOT NULL,
    "isTest"                 boolean NOT NULL DEFAULT false,
    number                   integer NOT NULL DEFAULT 0,
    engine                   "RunEngineVersion" NOT NULL DEFAULT 'V1',
    "createdAt"              timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "queuedAt"               timestamp(3),
    "delayUntil"             timestamp(3),
    "startedAt"              timestamp(3),
    "completedAt"            timestamp(3),
    "expiredAt"              timestamp(3),
    ttl                      text,
    "usageDurationMs"        integer NOT NULL DEFAULT 0,
    "costInCents"            double precision NOT NULL DEFAULT 0,
    "baseCostInCents"        double precision NOT NULL DEFAULT 0,
    "realtimeStreams"        text[] DEFAULT ARRAY[]::text[],
    "realtimeStreamsVersion" text NOT NULL DEFAULT 'v1',
    "streamBasinName"        text,
    "organizationId"         text,
    "projectId"              text NOT NULL,
    "environmentType"        "RuntimeEnvironmentType",
    "parentTaskRunId"        text,
    "rootTaskRunId"          text,
    depth                    integer NOT NULL DEFAULT 0,
    "idempotencyKey"         text,
    "oneTimeUseToken"        text,
    "traceId"                text NOT NULL,
    "spanId"                 text NOT NULL
);
ALTER TABLE "TaskRun" DROP COLUMN dropped_on_purpose;
CREATE UNIQUE INDEX "TaskRun_friendlyId_key" ON "TaskRun" ("friendlyId");
CREATE UNIQUE INDEX "TaskRun_oneTimeUseToken_key" ON "TaskRun" ("oneTimeUseToken");
CREATE UNIQUE INDEX "TaskRun_idempotency_key"
    ON "TaskRun" ("runtimeEnvironmentId", "taskIdentifier", "idempotencyKey");
CREATE INDEX "TaskRun_environment_created_idx"
    ON "TaskRun" ("runtimeEnvironmentId", "createdAt" DESC) INCLUDE (id);
CREATE INDEX "TaskRun_environment_batch_idx" ON "TaskRun" ("runtimeEnvironmentId", "batchId");
CREATE INDEX "TaskRun_parent_idx" ON "TaskRun" ("parentTaskRunId");
CREATE INDEX "TaskRun_runTags_idx" ON "TaskRun" USING gin ("runTags");
CREATE INDEX "TaskRun_createdAt_idx" ON "TaskRun" USING brin ("createdAt");

CREATE TABLE "BatchTaskRun" (
    id                     text NOT NULL PRIMARY KEY,
    "friendlyId"           text NOT NULL UNIQUE,
    "runtimeEnvironmentId" text NOT NULL,
    status                 "BatchTaskRunStatus" NOT NULL DEFAULT 'PENDING',
    "runCount"             integer NOT NULL DEFAULT 0,
    "runIds"               text[] DEFAULT ARRAY[]::text[],
    "batchVersion"         text NOT NULL DEFAULT 'v1',
    sealed                 boolean NOT NULL DEFAULT false,
    "idempotencyKey"       text,
    "oneTimeUseToken"      text UNIQUE,
    "createdAt"            timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"            timestamp(3) NOT NULL,
    "completedAt"          timestamp(3),
    UNIQUE ("runtimeEnvironmentId", "idempotencyKey")
);

-- Who may read what.
CREATE TABLE "Organization" (
    id                          text NOT NULL PRIMARY KEY,
    title                       text NOT NULL,
    slug                        text NOT NULL UNIQUE,
    "runsEnabled"               boolean NOT NULL DEFAULT true,
    "featureFlags"              jsonb,
    "apiRateLimiterConfig"      jsonb,
    "realtimeRateLimiterConfig" jsonb,
    "streamBasinName"           text,
    "createdAt"                 timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"                 timestamp(3) NOT NULL,
    "deletedAt"                 timestamp(3)
);

CREATE TABLE "Project" (
    id               text NOT NULL PRIMARY KEY,
    "organizationId" text NOT NULL REFERENCES "Organization" (id) ON UPDATE CASCADE ON DELETE CASCADE,
    name             text NOT NULL,
    slug             text NOT NULL UNIQUE,
    "externalRef"    text NOT NULL UNIQUE,
    engine           "RunEngineVersion" NOT NULL DEFAULT 'V1',
    "createdAt"      timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"      timestamp(3) NOT NULL,
    "deletedAt"      timestamp(3)
);

CREATE TABLE "OrgMember" (
    id               text NOT NULL PRIMARY KEY,
    "organizationId" text NOT NULL REFERENCES "Organization" (id) ON UPDATE CASCADE ON DELETE CASCADE,
    "userId"         text NOT NULL, -- refers to "User" in Trigger.dev, a table left out here
    role             "OrgMemberRole" NOT NULL DEFAULT 'MEMBER',
    "createdAt"      timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"      timestamp(3) NOT NULL,
    UNIQUE ("organizationId", "userId")
);

CREATE TABLE "RuntimeEnvironment" (
    id                            text NOT NULL PRIMARY KEY,
    type                          "RuntimeEnvironmentType" NOT NULL DEFAULT 'DEVELOPMENT',
    slug                          text NOT NULL,
    shortcode                     text NOT NULL,
    "apiKey"                      text NOT NULL UNIQUE,
    "pkApiKey"                    text NOT NULL UNIQUE,
    "organizationId"              text NOT NULL REFERENCES "Organization" (id) ON UPDATE CASCADE ON DELETE CASCADE,
    "projectId"                   text NOT NULL REFERENCES "Project" (id) ON UPDATE CASCADE ON DELETE CASCADE,
    "orgMemberId"                 text REFERENCES "OrgMember" (id) ON UPDATE CASCADE ON DELETE SET NULL,
    "parentEnvironmentId"         text REFERENCES "RuntimeEnvironment" (id) ON UPDATE CASCADE ON DELETE CASCADE,
    "isBranchableEnvironment"     boolean NOT NULL DEFAULT false,
    "branchName"                  text,
    "archivedAt"                  timestamp(3),
    paused                        boolean NOT NULL DEFAULT false,
    "maximumConcurrencyLimit"     integer NOT NULL DEFAULT 5,
    "concurrencyLimitBurstFactor" numeric(4, 2) NOT NULL DEFAULT 2.00,
    "createdAt"                   timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"                   timestamp(3) NOT NULL,
    UNIQUE ("projectId", shortcode),
    UNIQUE ("projectId", slug, "orgMemberId")
);
CREATE INDEX "RuntimeEnvironment_parent_idx" ON "RuntimeEnvironment" ("parentEnvironmentId");

-- Root keys that were rotated away and work until they expire. The key alone is not unique.
CREATE TABLE "RevokedApiKey" (
    id                     text NOT NULL PRIMARY KEY,
    "runtimeEnvironmentId" text NOT NULL REFERENCES "RuntimeEnvironment" (id) ON UPDATE CASCADE ON DELETE CASCADE,
    "apiKey"               text NOT NULL,
    "expiresAt"            timestamp(3) NOT NULL,
    "createdAt"            timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX "RevokedApiKey_apiKey_idx" ON "RevokedApiKey" ("apiKey");
CREATE INDEX "RevokedApiKey_environment_idx" ON "RevokedApiKey" ("runtimeEnvironmentId");

-- Additional keys, known by the lower-case hex SHA-256 of the whole key. Trigger.dev names this one
-- table and its columns in snake case.
CREATE TABLE api_keys (
    id                     text NOT NULL PRIMARY KEY,
    runtime_environment_id text NOT NULL REFERENCES "RuntimeEnvironment" (id) ON UPDATE CASCADE ON DELETE CASCADE,
    name                   text NOT NULL,
    key_hash               text NOT NULL UNIQUE,
    last_four              text NOT NULL,
    scopes                 text[] NOT NULL,
    preset_id              text,
    created_by_user_id     text,
    created_at             timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at             timestamp(3) NOT NULL,
    last_used_at           timestamp(3),
    expires_at             timestamp(3),
    revoked_at             timestamp(3)
);

-- Sessions and waitpoints, which carry streams and input beside runs.
CREATE TABLE "Session" (
    id                     text NOT NULL PRIMARY KEY,
    "friendlyId"           text NOT NULL UNIQUE,
    "externalId"           text,
    type                   text NOT NULL,
    "taskIdentifier"       text NOT NULL,
    "runtimeEnvironmentId" text NOT NULL,
    "environmentType"      "RuntimeEnvironmentType" NOT NULL,
    "projectId"            text NOT NULL,
    "organizationId"       text NOT NULL,
    tags                   text[] NOT NULL DEFAULT ARRAY[]::text[],
    metadata               jsonb,
    "triggerConfig"        jsonb NOT NULL,
    "currentRunId"         text,
    "currentRunVersion"    integer NOT NULL DEFAULT 0,
    "streamBasinName"      text,
    "isTest"               boolean NOT NULL DEFAULT false,
    "createdAt"            timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"            timestamp(3) NOT NULL,
    "expiresAt"            timestamp(3),
    "closedAt"             timestamp(3),
    "closedReason"         text,
    UNIQUE ("runtimeEnvironmentId", "externalId")
);

CREATE TABLE "Waitpoint" (
    id                           text NOT NULL PRIMARY KEY,
    "friendlyId"                 text NOT NULL UNIQUE,
    type                         "WaitpointType" NOT NULL,
    status                       "WaitpointStatus" NOT NULL DEFAULT 'PENDING',
    "environmentId"              text NOT NULL,
    "projectId"                  text NOT NULL,
    "idempotencyKey"             text NOT NULL,
    "userProvidedIdempotencyKey" boolean NOT NULL,
    output                       text,
    "outputType"                 text NOT NULL DEFAULT 'application/json',
    "outputIsError"              boolean NOT NULL DEFAULT false,
    tags                         text[],
    "createdAt"                  timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"                  timestamp(3) NOT NULL,
    "completedAt"                timestamp(3),
    UNIQUE ("environmentId", "idempotencyKey")
);

COMMIT;
