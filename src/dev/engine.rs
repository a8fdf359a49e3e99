//! The simulated engine behind `runwire dev`: keeps triggering runs and walks them through their
//! lives.

#[cfg(feature = "embedded")]
mod answer;
mod life;
mod upkeep;

use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::seed::Environment;

/// The key of the stream that the example run answers on.
pub(super) const ANSWER: &str = "answer";

/// How busy the engine is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often something is triggered.
    pub trigger_every: Duration,
    /// The mean time between the steps of a run.
    pub step: Duration,
    /// How many runs (or batches) may be under way.
    pub max_live: usize,
    /// How many finished runs stay in the database.
    pub keep_finished: u32,
    /// A run (by friendly id) whose progress goes round for ever, for examples that always work.
    pub ticking: Option<String>,
    /// A run (by friendly id) that answers word by word on a stream, and the gateway that it streams
    /// through.
    pub answering: Option<(String, SocketAddr)>,
    /// Makes the same choices again.
    pub seed: Option<u64>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            trigger_every: Duration::from_millis(500),
            step: Duration::from_millis(700),
            max_live: 40,
            keep_finished: 2000,
            ticking: None,
            answering: None,
            seed: None,
        }
    }
}

/// A running engine. Dropping it lets its tasks end by themselves; [`Engine::stop`] waits for them.
#[derive(Debug)]
pub struct Engine {
    stopping: CancellationToken,
    tasks: TaskTracker,
}

/// What every task of the engine works with.
#[derive(Clone, Debug)]
struct World {
    pool: PgPool,
    environment: Environment,
    settings: Settings,
    stopping: CancellationToken,
}

impl Engine {
    /// Starts triggering runs in an environment.
    pub fn start(pool: PgPool, environment: Environment, settings: Settings) -> Engine {
        let stopping = CancellationToken::new();
        let tasks = TaskTracker::new();
        let world = World { pool, environment, settings, stopping: stopping.clone() };
        tasks.spawn(trigger(world.clone(), tasks.clone()));
        tasks.spawn(upkeep::trim(world.clone()));
        #[cfg(feature = "embedded")]
        if let Some((run, gateway)) = world.settings.answering.clone() {
            tasks.spawn(answer::speak(world.clone(), gateway, run));
        }
        if let Some(run) = world.settings.ticking.clone() {
            tasks.spawn(upkeep::tick(world, run));
        }
        Engine { stopping, tasks }
    }

    /// Stops where it is: runs under way stay as they are, as with an engine that crashes. The next
    /// start cancels them.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

impl World {
    /// Waits; false if the engine stops meanwhile.
    async fn wait(&self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            () = self.stopping.cancelled() => false,
        }
    }
}

async fn trigger(world: World, tasks: TaskTracker) {
    upkeep::cancel_left_over(&world).await;
    let mut random = match world.settings.seed {
        Some(seed) => StdRng::seed_from_u64(seed),
        None => StdRng::from_rng(&mut rand::rng()),
    };
    let lives = TaskTracker::new();
    while world.wait(world.settings.trigger_every).await {
        if lives.len() < world.settings.max_live {
            let life = life::live(world.clone(), StdRng::seed_from_u64(random.random()));
            tasks.spawn(lives.track_future(life));
        }
    }
}
