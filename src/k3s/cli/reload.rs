//! The configuration of a role that runs, read again: the same command line and variables, and the files as they are now.

use k3s_config::{Error, Warning};
use k3s_daemon::ConfigSource;
use tracing::warn;

use super::failure::{Failure, OS_ERROR};

/// What is read at each SIGHUP. A key that nobody reads is a mistake here: nothing is lost by refusing it, unlike at a start.
pub(super) fn source<C>(
    parse: impl Fn() -> Result<Result<(C, Vec<Warning>), Error>, Failure> + Send + Sync + 'static,
) -> Result<ConfigSource<C>, Failure> {
    let read = move || {
        let (config, warnings) = parse().map_err(|failure| failure.to_string())?.map_err(|error| refused(&error))?;
        k3s_config::check(&warnings).map_err(|error| refused(&error))?;
        warnings.iter().for_each(|warning| warn!("{warning}"));
        Ok(config)
    };
    ConfigSource::on_hangup(read)
        .map_err(|error| Failure::new(OS_ERROR, format!("signals cannot be received: {error}")))
}

fn refused(error: &dyn std::error::Error) -> String {
    Failure::from_error(super::failure::CONFIGURATION, error).to_string()
}
