start_all()
server.wait_for_unit("k3s")
agent.wait_for_unit("k3s")

with subtest("both nodes are ready"):
    server.wait_until_succeeds("k3s kubectl get node agent")
    server.wait_until_succeeds("k3s kubectl wait --for=condition=Ready node --all --timeout=30s")

DEMO = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: demo}
spec:
  selector: {matchLabels: {app: demo}}
  template:
    metadata: {labels: {app: demo}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: demo
        image: docker.io/k3s-rs/demo:0.1.0
        imagePullPolicy: Never
        ports: [{containerPort: 8080}]
        resources: {limits: {memory: 20Mi}}
"""

with subtest("a pod runs on each"):
    server.wait_until_succeeds("k3s kubectl get serviceaccount default")
    server.succeed(f"k3s kubectl apply -f - <<'END'\n{DEMO}\nEND")
    server.wait_until_succeeds("k3s kubectl rollout status daemonset/demo --timeout=30s")

pods = server.succeed("k3s kubectl get pods -l app=demo -o jsonpath='{.items[*].metadata.name}'").split()
addresses = server.succeed("k3s kubectl get pods -l app=demo -o jsonpath='{.items[*].status.podIP}'").split()
t.assertEqual(len(addresses), 2)

with subtest("each machine reaches each pod"):
    for address in addresses:
        for node in [server, agent]:
            node.wait_until_succeeds(f"ping -c 1 -W 5 {address}", timeout=60)

with subtest("each pod reaches each pod, by an exec through the node's tunnel"):
    for pod in pods:
        for address in addresses:
            server.wait_until_succeeds(f"k3s kubectl exec {pod} -- nc -w 5 {address} 8080 </dev/null", timeout=60)

agent.shutdown()
server.shutdown()
