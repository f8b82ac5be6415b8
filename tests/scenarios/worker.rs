//! A pod that is there before something happens to its node, and has to be there after it.

/// On the node `agent`; it says hello and stays.
pub(crate) const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: worker}
spec:
  nodeName: agent
  terminationGracePeriodSeconds: 1
  containers:
  - {name: worker, image: "docker.io/k3s-rs/demo:0.1.0", command: [sh, -c, "echo hello; exec sleep 100000"]}
"#;
