//! A machine for tests: a directory that holds its files, its variables and its name.

use std::{collections::HashMap, ffi::OsString, fs, path::PathBuf};

use tempfile::TempDir;

use crate::{Environment, Error, Warning, agent::AgentConfig, parse_agent, parse_server, server::ServerConfig};

pub(crate) struct Host {
    directory: TempDir,
    pub(crate) environment: Environment,
}

impl Host {
    /// Named `pi`, with nothing configured; relative paths start in its directory.
    pub(crate) fn new() -> Self {
        let directory = TempDir::new().expect("a directory for the test");
        let environment = Environment {
            variables: HashMap::new(),
            hostname: "pi".to_owned(),
            directory: directory.path().to_owned(),
            config_file: directory.path().join("config.yaml"),
        };
        Self { directory, environment }
    }

    pub(crate) fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it lies in the test's directory")).expect("a writable directory");
        fs::write(path, content).expect("a writable directory");
        self
    }

    pub(crate) fn config(self, yaml: &str) -> Self {
        self.file("config.yaml", yaml)
    }

    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.variables.insert(name.into(), value.into());
        self
    }

    pub(crate) fn named(mut self, hostname: &str) -> Self {
        self.environment.hostname = hostname.to_owned();
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn server(&self, args: &[&str]) -> Result<(ServerConfig, Vec<Warning>), Error> {
        parse_server(args.iter().map(OsString::from), &self.environment)
    }

    pub(crate) fn agent(&self, args: &[&str]) -> Result<(AgentConfig, Vec<Warning>), Error> {
        parse_agent(args.iter().map(OsString::from), &self.environment)
    }

    /// Text in which the test's directory is called `DIR`.
    pub(crate) fn anonymous(&self, text: impl ToString) -> String {
        text.to_string().replace(&self.directory.path().display().to_string(), "DIR")
    }
}
