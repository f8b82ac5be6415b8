PASSWORD = "/etc/rancher/node/password"

start_all()
server.wait_for_unit("k3s")
agent.wait_for_unit("k3s")
server.wait_until_succeeds("k3s kubectl wait --for=condition=Ready node/agent --timeout=30s")

with subtest("a node that lost its password is refused with the remedy"):
    agent.succeed("systemctl stop k3s", f"rm {PASSWORD}")
    agent.succeed("systemctl start --no-block k3s")
    agent.wait_until_succeeds("journalctl --no-pager -u k3s | grep 'k3s node forget'")

with subtest("which lets it in again"):
    server.succeed("k3s node forget agent")
    agent.wait_for_unit("k3s")
    server.wait_until_succeeds("k3s kubectl wait --for=condition=Ready node/agent --timeout=30s")
