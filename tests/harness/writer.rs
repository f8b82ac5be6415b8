//! A client that never stops writing, and what was acknowledged to it.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    k3s::PATIENCE,
    node::{Node, pause},
};

/// What is waited for an answer, before the next object is written.
const ANSWER: &str = "--connect-timeout 2 --max-time 3";

/// Writes one ConfigMap after another, each once and by a connection of its own, and notes those that the API has acknowledged.
#[derive(Debug)]
pub struct Writer {
    /// What the names of its objects begin with.
    name: String,
    /// Its folder as the test sees it.
    folder: PathBuf,
}

/// A write that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Acknowledged {
    name: String,
    /// Both since 1970.
    sent: Duration,
    answered: Duration,
}

impl Writer {
    /// Writes from `node` to the API at a port of its loopback, with the rights of `server`'s administrator, as soon as that answers.
    #[track_caller]
    pub fn start(node: &Node, port: u16, server: &Node) -> Self {
        let name = format!("written-{}", now().as_millis());
        let folder = format!("/var/lib/{name}");
        for file in ["server-ca.crt", "client-admin.crt", "client-admin.key"] {
            let text = server.succeed(&format!("cat /var/lib/rancher/k3s/server/tls/{file}"));
            node.write(&format!("{folder}/{file}"), &text);
        }
        node.background(&format!(
            "cd {folder}
             n=0
             while test ! -e end; do
               n=$((n + 1)) sent=$(date +%s%N)
               if curl -sf {ANSWER} --cacert server-ca.crt --cert client-admin.crt --key client-admin.key -o /dev/null \
                  -H \"Content-Type: application/json\" -d \"{{\\\"metadata\\\": {{\\\"name\\\": \\\"{name}-$n\\\"}}}}\" \
                  https://127.0.0.1:{port}/api/v1/namespaces/default/configmaps
               then echo {name}-$n $sent $(date +%s%N) >> acknowledged
               fi
               sleep 0.05
             done"
        ));
        let writer = Self { folder: node.path_on_disk(&folder), name };
        writer.wait_until("something is acknowledged", |writes| !writes.is_empty());
        writer
    }

    /// Does what makes the API fail, and tells for how long nothing was acknowledged: from the last write before that was, or from
    /// `failure` on, until one is that was sent afterwards.
    #[track_caller]
    pub fn through(&self, failure: impl FnOnce()) -> Duration {
        self.through_all(Duration::ZERO, failure)
    }

    /// As [`Writer::through`] for what takes a while to show: the longest time within the first `window` and up to the first write after
    /// that.
    #[track_caller]
    pub fn through_all(&self, window: Duration, failure: impl FnOnce()) -> Duration {
        let before = self.writes().len();
        failure();
        let watched = now() + window;
        let is_over = |writes: &[Acknowledged]| writes.last().is_some_and(|last| last.sent >= watched);
        let writes = self.wait_until("writes are acknowledged again", is_over);
        longest_gap(&writes[before.saturating_sub(1)..])
    }

    /// Ends the writer, if its node has not. Everything that was acknowledged to it is there, as `server` says.
    #[track_caller]
    pub fn stop(self, server: &Node) {
        fs::write(self.folder.join("end"), "").expect("the writer's folder is there");
        // Read before the list: whatever is acknowledged until then has to be in it.
        let writes = self.writes();
        let list = format!("k3s kubectl get configmaps -o name | grep '/{}-'", self.name);
        let stored = server.wait_until_succeeds(&list, PATIENCE);
        let stored: BTreeSet<_> = stored.lines().filter_map(|line| line.strip_prefix("configmap/")).collect();
        let lost: Vec<_> = writes.iter().filter(|write| !stored.contains(write.name.as_str())).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        println!("  {} acknowledged writes are there", writes.len());
    }

    fn writes(&self) -> Vec<Acknowledged> {
        let text = fs::read_to_string(self.folder.join("acknowledged")).unwrap_or_default();
        // The last line may be about to be written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().filter_map(Acknowledged::parse).collect()
    }

    #[track_caller]
    fn wait_until(&self, what: &str, is_so: impl Fn(&[Acknowledged]) -> bool) -> Vec<Acknowledged> {
        let began = now();
        loop {
            let writes = self.writes();
            if is_so(&writes) {
                return writes;
            }
            assert!(now() < began + PATIENCE, "{}: gave up on that {what} after {PATIENCE:?}", self.name);
            pause(Duration::ZERO);
        }
    }
}

impl Acknowledged {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let name = words.next()?.to_owned();
        let mut time = || Some(Duration::from_nanos(words.next()?.parse().ok()?));
        Some(Self { name, sent: time()?, answered: time()? })
    }
}

/// The longest time between two answers.
fn longest_gap(writes: &[Acknowledged]) -> Duration {
    let pairs = writes.windows(2);
    pairs.map(|pair| pair[1].answered.saturating_sub(pair[0].answered)).max().unwrap_or_default()
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_between_answers() {
        let lines = ["a 0 1000000000", "b 1000000001 3500000000", "c 3600000000 3700000000"];
        let writes: Vec<_> = lines.into_iter().filter_map(Acknowledged::parse).collect();
        assert_eq!(longest_gap(&writes), Duration::from_millis(2500));
        assert_eq!(Acknowledged::parse("a 1"), None);
    }
}
