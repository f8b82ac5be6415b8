//! What pods say arrives whole at readers that are slower than they are, whoever ends first.

use cluster_tests::{Network, Node, PATIENCE, step};

/// On each node a pod that serves, holds and logs numbers, and one that says them to whoever attaches.
fn pods(node: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: numbers-{node}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - name: numbers
    image: docker.io/k3s-rs/demo:0.1.0
    command: [sh, -c, "seq 1 2500000 > /www/numbers; seq -s ' ' 1 900000; touch /tmp/made; exec httpd -f -p 8080 -h /www"]
    readinessProbe: {{exec: {{command: [test, -e, /tmp/made]}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Pod
metadata: {{name: attached-{node}}}
spec:
  nodeName: {node}
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: numbers
    image: docker.io/k3s-rs/demo:0.1.0
    command: [sh, -c, "seq 1 2500000 > /tmp/numbers; touch /tmp/made; read begin; cat /tmp/numbers"]
    readinessProbe: {{exec: {{command: [test, -e, /tmp/made]}}, periodSeconds: 1}}
    stdin: true
    stdinOnce: true
"#
    )
}

/// The ways to the numbers of one node's pods, all at once. `slowly` takes 2.5 MB a second: the pod has said all of it long before, and
/// kubectl sends a ping every five seconds.
const WAYS: &str = r#"
node=$1 port=$2
cd $(mktemp -d)
seq 1 2500000 > all; seq -s ' ' 1 900000 > logged
slowly() {
  while head -c 250000 > part.$1 && test -s part.$1; do cat part.$1; sleep 0.1; done
}
slow_pod='while dd of=/tmp/part bs=250000 count=1 iflag=fullblock 2>/dev/null && test -s /tmp/part; do cat /tmp/part; sleep 0.1; done | md5sum'
judge() {
  if cmp -s $2 $3; then echo "$node $1: whole"; else echo "$node $1: $(stat -c %s $3) of $(stat -c %s $2) bytes; $(cat error.$1)"; fi
}
exec_websocket() {
  k3s kubectl exec numbers-$node -- cat /www/numbers 2>error.exec | slowly exec > got.exec
  judge exec all got.exec
}
exec_spdy() {
  KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false k3s kubectl exec numbers-$node -- cat /www/numbers 2>error.spdy | slowly spdy > got.spdy
  judge spdy all got.spdy
}
upload() {
  k3s kubectl exec -i numbers-$node -- sh -c "$slow_pod" < all > got.upload 2>error.upload; md5sum < all > sum
  judge upload sum got.upload
}
logs() {
  k3s kubectl logs numbers-$node 2>error.logs | slowly logs > got.logs
  judge logs logged got.logs
}
attach() {
  echo begin | k3s kubectl attach -qi attached-$node 2>error.attach | slowly attach > got.attach
  judge attach all got.attach
}
copy() {
  k3s kubectl cp numbers-$node:/www/numbers got.cp > /dev/null 2>error.cp
  judge cp all got.cp
  k3s kubectl cp all numbers-$node:/tmp/copied 2>error.cp-to
  k3s kubectl exec numbers-$node -- cat /tmp/copied > got.cp-to 2>>error.cp-to
  judge cp-to all got.cp-to
}
forward() {
  k3s kubectl port-forward pod/numbers-$node $port:8080 > /dev/null 2>error.forward & forwarding=$!
  until ss -Hltn "sport = :$port" | grep -q .; do sleep 0.1; done
  curl -s --limit-rate 2500k http://127.0.0.1:$port/numbers > got.forward
  judge forward all got.forward
  kill $forwarding
}
exec_websocket & exec_spdy & upload & logs & attach & copy & forward &
wait
"#;

#[test]
fn what_pods_say_arrives_whole_at_slow_readers() {
    read_slowly("", 1);
}

/// `cargo nextest run -p cluster-tests --run-ignored only slow_readers`: some ten minutes.
#[test]
#[ignore = "twenty rounds"]
fn what_pods_say_arrives_whole_in_each_egress_mode_time_and_again() {
    for mode in ["agent", "pod", "cluster", "disabled"] {
        read_slowly(&format!("--egress-selector-mode={mode}"), 5);
    }
}

fn read_slowly(flags: &str, rounds: usize) {
    let network = Network::new();
    let [server, agent] = ["server", "agent"].map(|name| Node::boot(&network, name));
    step(&format!("a server and an agent run, {flags}"), || {
        [&server, &agent].iter().for_each(|node| node.give_demo_image());
        server.start_k3s(flags);
        agent.start_k3s_agent(&server, "");
        server.wait_until_ready();
        server.wait_until_node_ready("agent");
        server.write("/tmp/ways", WAYS);
    });
    for _ in 0..rounds {
        step("pods run on both", || {
            server.apply(&["server", "agent"].map(pods).join("---"));
            server.wait_until_succeeds("k3s kubectl wait --for=condition=Ready pod --all --timeout=20s", PATIENCE);
        });
        for (node, port) in [("server", 9000), ("agent", 9001)] {
            step(&format!("every byte of the pods on the {node} arrives, by each way"), || {
                let told = server.succeed(&format!("bash /tmp/ways {node} {port}"));
                let whole = told.lines().filter(|line| line.ends_with(": whole")).count();
                assert!(whole == 8 && told.lines().count() == 8, "{told}");
            });
        }
        // Who was attached to once cannot be again.
        server.kubectl("delete pod --all");
    }
}
