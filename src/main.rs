//! The command line.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use runwire::config::{ServeArgs, SlotArgs};
use runwire::dev::{self, DevArgs};
use runwire::replication::SetupError;
use runwire::server::{Server, StartError};
use runwire::token_command::{self, TokenArgs, TokenError};
use runwire::{logs, replication};
use tokio::signal::unix::{SignalKind, signal};

/// Held polls are small and many; this allocator keeps their pages apart and gives them back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A realtime gateway for Trigger.dev: Postgres' write-ahead log to the clients you already have.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the run feeds of a Trigger.dev database
    #[command(after_help = logs::HELP)]
    Serve(Box<ServeArgs>),
    /// Try it: a throw-away Postgres, simulated runs and the gateway, all gone at Ctrl-C
    Dev(Box<DevArgs>),
    /// Make a public access token from a key, for first steps and scripts
    Token(Box<TokenArgs>),
    /// Look after the replication slot
    #[command(subcommand)]
    Slot(SlotCommand),
}

#[derive(Subcommand)]
enum SlotCommand {
    /// Remove the slot and the publication, so that Postgres keeps nothing for Runwire
    Drop(SlotArgs),
}

/// What went wrong is the settings, or what they name.
const EXIT_SETTINGS: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    logs::install(match cli.command {
        // What it prints is to be read, so only what is wrong may come between; a slow laptop is not.
        Command::Dev(_) | Command::Token(_) => "warn,sqlx=error",
        _ => "info",
    });
    // Before anything makes a TLS connection: libraries in here would choose different ones.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &error),
    };
    let code = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve(&args).await,
            Command::Dev(args) => match dev::run_command(*args).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(if error.is_setting() { EXIT_SETTINGS } else { 1 }, &error),
            },
            Command::Token(args) => token(*args).await,
            Command::Slot(SlotCommand::Drop(args)) => drop_slot(&args).await,
        }
    });
    // Not dropped, which would wait without end for blocking work that hangs.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

async fn serve(args: &ServeArgs) -> ExitCode {
    let settings = match args.settings() {
        Ok(settings) => settings,
        Err(error) => return fail(EXIT_SETTINGS, &error),
    };
    // Asked for before the start, so that a signal during it is not lost.
    let stop = async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        std::io::Result::Ok(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
    };
    let stop = match stop.await {
        Ok(stop) => stop,
        Err(error) => return fail(1, &error),
    };
    let server = match Server::start(settings).await {
        Ok(server) => server,
        Err(
            error @ (StartError::Listen(..)
            | StartError::Tls(_)
            | StartError::Setup(SetupError::Wrong(_))),
        ) => {
            return fail(EXIT_SETTINGS, &error);
        }
        Err(error) => return fail(1, &error),
    };
    for also in &server.also_at {
        tracing::info!(clients = %also, "listening as well");
    }
    for tls in &server.tls_addresses {
        tracing::info!(clients = %tls, "listening with TLS");
    }
    tracing::info!(clients = %server.address, operators = %server.admin_address, "listening");
    stop.await;
    tracing::info!("draining");
    server.stop().await;
    ExitCode::SUCCESS
}

async fn token(args: TokenArgs) -> ExitCode {
    match token_command::mint(args).await {
        Ok(token) => {
            println!("{token}");
            ExitCode::SUCCESS
        }
        Err(error @ (TokenError::Setting(_) | TokenError::Expiry(_))) => {
            fail(EXIT_SETTINGS, &error)
        }
        Err(error) => fail(1, &error),
    }
}

async fn drop_slot(args: &SlotArgs) -> ExitCode {
    let settings = match args.settings() {
        Ok(settings) => settings,
        Err(error) => return fail(EXIT_SETTINGS, &error),
    };
    match replication::drop_slot(&settings).await {
        Ok(done) => {
            println!("{done}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(1, &error),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    // What a program said that failed may have many lines.
    let error = error.to_string();
    let lines: Vec<&str> = error.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    eprintln!("runwire: {}", lines.join("; "));
    ExitCode::from(code)
}
