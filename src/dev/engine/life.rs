//! What happens to a run from trigger to end.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use serde_json::json;

use super::World;
use crate::dev::batch::{complete_batch, trigger_batch};
use crate::dev::run::{
    RunSpec, StepError, add_tag, built_in_error, complete, fail, set_metadata, set_status,
    trigger_run,
};

const TASKS: [&str; 5] =
    ["send-receipt", "resize-image", "sync-inventory", "generate-report", "ask-model"];
const STEPS: [&str; 4] = ["fetching", "working", "checking", "storing"];

/// The queues of the engine's own runs, by which [`super::upkeep`] knows them.
pub(super) const QUEUES: &str = "runwire-dev/";

/// Triggers a run or a batch and sees it to its end, or to the engine's.
pub(super) async fn live(world: World, mut random: StdRng) {
    let lived = if random.random_bool(0.08) {
        batch(&world, &mut random).await
    } else {
        single(&world, &mut random).await
    };
    match lived {
        Ok(()) => {}
        // Deleted meanwhile, by us or by whoever plays with the database.
        Err(StepError::Unknown(run)) => tracing::debug!(run, "a simulated run is gone"),
        Err(StepError::Sql(error)) => tracing::debug!(%error, "a simulated run was given up"),
    }
}

async fn single(world: &World, random: &mut StdRng) -> Result<(), StepError> {
    let mut spec = spec(random);
    if random.random_bool(0.08) {
        spec.delay_seconds = Some(3);
    }
    let delay = spec.delay_seconds;
    let run = trigger_run(&world.pool, &world.environment, spec).await?.friendly_id;
    if let Some(seconds) = delay {
        if !world.wait(Duration::from_secs(seconds.unsigned_abs().into())).await {
            return Ok(());
        }
        set_status(&world.pool, &run, "PENDING").await?;
    }
    walk(world, random, &run).await
}

async fn batch(world: &World, random: &mut StdRng) -> Result<(), StepError> {
    let specs = (0..random.random_range(2..6)).map(|_| spec(random)).collect();
    let batch = trigger_batch(&world.pool, &world.environment, specs).await?;
    for run in &batch.runs {
        walk(world, random, &run.friendly_id).await?;
    }
    if !world.stopping.is_cancelled() {
        complete_batch(&world.pool, &batch.friendly_id).await?;
    }
    Ok(())
}

fn spec(random: &mut StdRng) -> RunSpec {
    let task = TASKS[random.random_range(0..TASKS.len())];
    let mut payload = json!({ "order": random.random_range(1000..10_000) });
    if random.random_bool(0.05) {
        // Incompressible, so that it is stored out of line and streams as "unchanged" later.
        let digit = |_| char::from(random.random_range(b'0'..=b'z'));
        payload["blob"] = (0..12_000).map(digit).collect::<String>().into();
    }
    let tags = random
        .random_bool(0.9)
        .then(|| vec![format!("user:{}", random.random_range(1..=5)), format!("task:{task}")]);
    RunSpec {
        payload: payload.to_string(),
        tags,
        ttl: random.random_bool(0.1).then(|| "10m".to_owned()),
        queue: Some(format!("{QUEUES}{task}")),
        ..RunSpec::new(task)
    }
}

/// From `PENDING` to the end.
async fn walk(world: &World, random: &mut StdRng, run: &str) -> Result<(), StepError> {
    let pool = &world.pool;
    let step = world.settings.step;
    let pause = |random: &mut StdRng| world.wait(step.mul_f64(random.random_range(0.5..1.5)));

    if !pause(random).await {
        return Ok(());
    }
    match random.random_range(0..100) {
        0..3 => return set_status(pool, run, "EXPIRED").await,
        3..6 => return set_status(pool, run, "CANCELED").await,
        _ => set_status(pool, run, "DEQUEUED").await?,
    }
    if !pause(random).await {
        return Ok(());
    }
    set_status(pool, run, "EXECUTING").await?;

    let fails_at = random.random_bool(0.12).then(|| random.random_range(1..=10));
    let cancelled_at = random.random_bool(0.05).then(|| random.random_range(1..=10));
    for tenth in 1..=10u8 {
        if !pause(random).await {
            return Ok(());
        }
        let doing = STEPS[usize::from(tenth - 1) * STEPS.len() / 10];
        let metadata = json!({ "progress": f64::from(tenth) / 10.0, "step": doing });
        set_metadata(pool, run, &metadata.to_string()).await?;
        if tenth == 4 && random.random_bool(0.2) {
            add_tag(pool, run, "slow").await?;
        }
        if tenth == 6 && random.random_bool(0.1) {
            set_status(pool, run, "WAITING_TO_RESUME").await?;
            if !pause(random).await {
                return Ok(());
            }
            set_status(pool, run, "EXECUTING").await?;
        }
        if cancelled_at == Some(tenth) {
            return set_status(pool, run, "CANCELED").await;
        }
        if fails_at == Some(tenth) {
            let error = built_in_error("TypeError", "Cannot read properties of undefined");
            return fail(pool, run, &error).await;
        }
    }
    let output = json!({ "ok": true, "items": random.random_range(1..100) });
    complete(pool, run, &output.to_string()).await
}
