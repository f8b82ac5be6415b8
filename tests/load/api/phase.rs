//! The phases: what is asked, by how many clients at once, how often.

use anyhow::Result;
use clap::Subcommand;
use http::Method;
use load::{Log, Outcome, Size};

use crate::objects::{LIST, Objects, object, path};
use crate::watch;

/// A line of standard input. All but `create` need objects that are there.
#[derive(Subcommand)]
pub(crate) enum Phase {
    /// Make objects.
    Create(Size),
    /// Replace objects.
    Update(Size),
    /// Read single objects.
    Get(Size),
    /// Read the first 500 objects, from the cache of the API server as informers do.
    List(Size),
    /// Replace objects while watchers look on; an operation is an event that reaches a watcher, its latency counts from the request.
    Watch {
        /// How many watchers.
        #[arg(long)]
        watchers: usize,
        #[command(flatten)]
        size: Size,
    },
}

impl Phase {
    pub(crate) async fn run(self, objects: &mut Objects) -> Result<Outcome> {
        match self {
            Self::Create(size) => {
                let numbers = objects.grow(size.operations()).collect();
                write(objects, size, Method::POST, numbers).await
            }
            Self::Update(size) => update(objects, size).await,
            Self::Get(size) => {
                let numbers = (0..size.operations()).map(|number| objects.there(number)).collect::<Result<Vec<_>>>()?;
                read(objects, size, numbers.into_iter().map(path).collect()).await
            }
            Self::List(size) => {
                let page = format!("{LIST}?limit=500&resourceVersion=0");
                read(objects, size, vec![page; size.operations()]).await
            }
            Self::Watch { watchers, size } => watch::run(objects, watchers, size).await,
        }
    }
}

/// Also the writers of [`watch`].
pub(crate) async fn update(objects: &Objects, size: Size) -> Result<Outcome> {
    let numbers = (0..size.operations()).map(|number| objects.there(number)).collect::<Result<Vec<_>>>()?;
    write(objects, size, Method::PUT, numbers).await
}

async fn write(objects: &Objects, size: Size, method: Method, numbers: Vec<usize>) -> Result<Outcome> {
    let values = objects.values().clone();
    let writing = objects.together(load::dealt(numbers, size.clients()), |mut client, numbers| {
        let (values, method) = (values.clone(), method.clone());
        async move {
            let mut log = Log::default();
            for &number in &numbers {
                let path = if method == Method::POST { LIST.to_owned() } else { path(number) };
                log.write(client.ask(method.clone(), &path, object(number, &values))).await?;
            }
            Ok((log, numbers))
        }
    });
    writing.await
}

async fn read(objects: &Objects, size: Size, paths: Vec<String>) -> Result<Outcome> {
    let reading = objects.together(load::dealt(paths, size.clients()), |mut client, paths| async move {
        let mut log = Log::default();
        for path in &paths {
            log.read(client.ask(Method::GET, path, Vec::new())).await?;
        }
        Ok((log, paths))
    });
    reading.await
}
