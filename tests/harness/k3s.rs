//! `k3s` on a node.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::node::{Job, Node, pause};

/// Where the node keeps what `k3s` prints, over all its starts.
pub(crate) const LOG: &str = "/var/log/k3s.log";

/// Fails as long as `k3s` has not come up so far that it answers.
const STATUS: &str = "k3s status -o json";

/// How long a cluster may take to do what it was asked, on a slow and busy machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// One running process, told apart from a later one with the same number by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its id inside the node.
    pub pid: u32,
    /// Clock ticks from the machine's boot to its start, as `/proc/<pid>/stat` has it.
    pub started: u64,
}

/// Packaged add-ons that few scenarios look at, and that each node of all others would start.
pub const LIGHT: &str = "--disable=local-storage,metrics-server,traefik";

impl Node {
    /// Starts `k3s server` with these flags, as a service manager would: a child of process 1 in a cgroup of its own on v2. The heavier
    /// of the packaged add-ons are left out.
    #[track_caller]
    pub fn start_k3s(&self, flags: &str) -> Job {
        self.start_k3s_with("", flags)
    }

    /// Starts `k3s server` with these variables in its environment, as `NAME=value NAME=value`.
    #[track_caller]
    pub fn start_k3s_with(&self, variables: &str, flags: &str) -> Job {
        self.start_role(variables, "server", &format!("{LIGHT} {flags}"))
    }

    /// Starts `k3s server` with these flags and nothing that they do not say: every packaged add-on is there.
    #[track_caller]
    pub fn start_k3s_with_addons(&self, flags: &str) -> Job {
        self.start_role("", "server", flags)
    }

    /// Starts `k3s agent` in the same way, with the address and the token of `server` in its configuration file.
    #[track_caller]
    pub fn start_k3s_agent(&self, server: &Self, flags: &str) -> Job {
        let token = server.wait_until_succeeds("cat /var/lib/rancher/k3s/server/node-token", PATIENCE);
        let config = format!("server: https://{}:6443\ntoken: {token}", server.address());
        self.write("/etc/rancher/k3s/config.yaml", &config);
        self.restart_k3s_agent(flags)
    }

    /// Starts `k3s agent` with the configuration file that it has.
    #[track_caller]
    pub fn restart_k3s_agent(&self, flags: &str) -> Job {
        self.start_role("", "agent", flags)
    }

    /// Asks `k3s` to end, and waits until it has.
    #[track_caller]
    pub fn stop_k3s(&self) {
        self.succeed("pid=$(pgrep -x k3s) && kill -TERM $pid && tail --pid=$pid -f /dev/null");
    }

    #[track_caller]
    fn start_role(&self, variables: &str, role: &str, flags: &str) -> Job {
        let found = self.execute("test -x /opt/k3s/bin/k3s").code == 0;
        assert!(found, "target/dist holds no k3s: build it with `cargo xtask dist`");
        self.background_into(
            &format!(
                "unit=/sys/fs/cgroup/k3s.service
                 if test -f /sys/fs/cgroup/cgroup.controllers; then mkdir -p $unit; echo 0 > $unit/cgroup.procs; fi
                 exec env {variables} k3s {role} {flags}"
            ),
            LOG,
        )
    }

    /// Puts the demo image where `k3s` imports images from: pods of `docker.io/k3s-rs/demo:0.1.0` run without a registry.
    #[track_caller]
    pub fn give_demo_image(&self) {
        self.succeed(
            "test -e /opt/k3s-test/images/demo.tar || { echo 'build it with `cargo xtask dist`' >&2; exit 1; }
             mkdir -p /var/lib/rancher/k3s/agent/images
             cp /opt/k3s-test/images/demo.tar /var/lib/rancher/k3s/agent/images/",
        );
    }

    /// Has the kernel forget what it holds of the programs' files: who reads them next has them counted as its own memory. What another node
    /// runs stays.
    #[track_caller]
    pub fn forget_programs(&self) {
        self.succeed("find /opt/k3s -type f -exec dd if={} iflag=nocache count=0 status=none \\;");
    }

    /// Runs `k3s kubectl`, which has to succeed.
    #[track_caller]
    pub fn kubectl(&self, args: &str) -> String {
        self.succeed(&format!("k3s kubectl {args}"))
    }

    /// Applies manifests.
    #[track_caller]
    pub fn apply(&self, manifests: &str) {
        self.write("/tmp/manifests.yaml", manifests);
        self.kubectl("apply -f /tmp/manifests.yaml");
    }

    /// Waits until the API says that the node is Ready, and takes pods: on a new cluster the service account that they run as can come later.
    #[track_caller]
    pub fn wait_until_ready(&self) {
        self.wait_until_node_ready(self.name());
        self.wait_until_succeeds("k3s kubectl get serviceaccount default", PATIENCE);
    }

    /// Waits until this server's API says that the node called `name` is Ready.
    #[track_caller]
    pub fn wait_until_node_ready(&self, name: &str) {
        let ready = "{.status.conditions[?(@.type==\"Ready\")].status}";
        self.wait_until_succeeds(
            &format!("k3s kubectl get node {name} -o jsonpath='{ready}' | grep -qx True"),
            PATIENCE,
        );
    }

    /// Waits until the pods of a Deployment are available.
    #[track_caller]
    pub fn wait_for_deployment(&self, namespace: &str, name: &str) {
        self.wait_until_succeeds(
            &format!("k3s kubectl -n {namespace} rollout status deployment/{name} --timeout=20s"),
            PATIENCE,
        );
    }

    /// Waits until `k3s` on this node has printed a line that holds `text`.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        self.wait_until_succeeds(&format!("grep -qF '{text}' {LOG}"), PATIENCE);
    }

    /// Writes a ConfigMap of that name as soon as that is possible. A try whose answer did not come may have made it.
    #[track_caller]
    pub fn wait_until_written(&self, name: &str) {
        let [create, get] =
            ["create", "get"].map(|verb| format!("k3s kubectl --request-timeout=5s {verb} configmap {name}"));
        self.wait_until_succeeds(&format!("{create} || {get}"), PATIENCE);
    }

    /// Waits until `k3s status` holds `text`, and returns it.
    #[track_caller]
    pub fn wait_for_status(&self, text: &str) -> String {
        self.wait_until_succeeds(&format!("k3s status | tee /dev/stderr | grep -qF '{text}' && k3s status"), PATIENCE)
    }

    /// What `k3s status -o json` says.
    #[track_caller]
    pub fn status(&self) -> Value {
        let text = self.succeed(STATUS);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("`{STATUS}` is no JSON: {error}: {text}"))
    }

    /// The running children of `k3s` by component.
    #[track_caller]
    pub fn components(&self) -> BTreeMap<String, Process> {
        let status = self.status();
        let components = status["components"].as_array().map(Vec::as_slice).unwrap_or_default();
        let pid = |component: &Value| component["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        components
            .iter()
            .filter_map(|component| Some((component["name"].as_str()?.to_owned(), self.process(pid(component)?)?)))
            .collect()
    }

    /// Waits until `k3s` tells its status and the running children are as they should be, and returns them.
    #[track_caller]
    pub fn wait_for_components(&self, done: impl Fn(&BTreeMap<String, Process>) -> bool) -> BTreeMap<String, Process> {
        self.wait_until_succeeds(STATUS, PATIENCE);
        let began = Instant::now();
        loop {
            let running = self.components();
            if done(&running) {
                return running;
            }
            let waited = began.elapsed();
            assert!(waited < PATIENCE, "{}: not as they should be:\n{}", self.name(), self.succeed("k3s status"));
            pause(waited);
        }
    }

    /// Waits until the child called `name` has answered `k3s`.
    #[track_caller]
    pub fn wait_until_component_ready(&self, name: &str) {
        self.wait_until_succeeds(&format!("k3s status | grep -qE '^{name} +ready '"), PATIENCE);
    }

    /// A process of the node, if there is one with this id.
    #[track_caller]
    pub fn process(&self, pid: u32) -> Option<Process> {
        let stat = fs::read_to_string(self.path(format!("/proc/{pid}/stat"))).ok()?;
        // The name may hold anything, also ") "; 20 fields follow it until the start time.
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let alive = !matches!(fields.next()?, "Z" | "X");
        let started = fields.nth(18)?.parse().ok()?;
        alive.then_some(Process { pid, started })
    }

    /// Kills one process of the node with SIGKILL and waits until it has gone.
    #[track_caller]
    pub fn kill(&self, process: Process) {
        self.succeed(&format!("kill -9 {}", process.pid));
        self.wait_until_succeeds(
            &format!("! test -e /proc/{0} || grep -q '^State:.[ZX]' /proc/{0}/status", process.pid),
            PATIENCE,
        );
    }
}
