//! Servers of etcd alone beside servers of the control plane alone, when one of them is not there.

use std::collections::BTreeMap;

use cluster_tests::{Network, Node, PATIENCE, Process, step};

use crate::embedded_etcd::wait_for_voters;

/// A server of etcd alone; the configuration is where its flags stay for all starts.
const ETCD_ALONE: &str =
    "token: s3cret\ndisable-apiserver: true\ndisable-controller-manager: true\ndisable-scheduler: true\n";

fn set_up(node: &Node, config: &str) {
    node.write("/etc/rancher/k3s/config.yaml", config);
}

fn join(server: &Node) -> String {
    format!("server: https://{}:6443\n", server.address())
}

/// Whether the children are those of before, but for what loses its lease when nothing can be written for ten seconds.
fn others_live(before: &BTreeMap<String, Process>, after: &BTreeMap<String, Process>) -> bool {
    let leases = ["kube-controller-manager", "kube-scheduler"];
    before
        .iter()
        .filter(|(name, _)| !leases.contains(&name.as_str()))
        .all(|(name, process)| after.get(name) == Some(process))
}

#[test]
fn a_control_plane_alone_waits_for_etcd() {
    let network = Network::new();
    let (mut etcd, plane) = (Node::boot(&network, "etcd"), Node::boot(&network, "plane"));
    let flags = "--disable-agent";
    set_up(&etcd, &format!("{ETCD_ALONE}cluster-init: true\n"));
    set_up(&plane, &format!("token: s3cret\ndisable-etcd: true\n{}", join(&etcd)));
    let away = format!(
        "etcd has no leader, as 0 of 1 members answer and 1 are needed: start the servers that are away, {}:2379 (",
        etcd.address()
    );

    step("before etcd has ever answered it says whom it waits for, and joins as soon as it does", || {
        plane.start_k3s(flags);
        plane.wait_for_status(&format!("etcd: https://{}:6443 does not answer (", etcd.address()));
        assert_eq!(plane.succeed("grep -c 'cannot join the cluster' /var/log/k3s.log").trim(), "1");
        etcd.start_k3s(flags);
        plane.wait_until_written("first");
        wait_for_voters(&etcd, &[&etcd]);
        plane.wait_for_status(&format!("etcd of other servers: {}:2379; revision", etcd.address()));
    });
    step("a server of etcd is cut off the power and comes back: the control plane tells, and goes on", || {
        let before = plane.components();
        etcd.crash();
        plane.wait_for_status(&format!("The datastore is not as it should be: {away}"));
        etcd.start();
        etcd.start_k3s(flags);
        plane.wait_until_written("second");
        plane.wait_until_succeeds("! k3s status | grep -F 'not as it should be'", PATIENCE);
        let after = plane.components();
        assert!(others_live(&before, &after), "{before:?} became {after:?}");
    });
    step("the control plane is started while etcd is away, and waits", || {
        plane.stop_k3s();
        etcd.stop_k3s();
        plane.start_k3s(flags);
        plane.wait_for_status(&format!("waiting for datastore ({away}"));
        etcd.start_k3s(flags);
        plane.wait_until_written("third");
    });
    step("it stops in time while etcd is away", || {
        etcd.crash();
        plane.wait_for_status(&format!("The datastore is not as it should be: {away}"));
        plane.stop_k3s();
        etcd.start();
        etcd.start_k3s(flags);
        plane.start_k3s(flags);
        plane.wait_until_written("fourth");
    });
    step("a name that is no server of etcd is told", || {
        let other = Node::boot(&network, "other");
        set_up(&other, &format!("token: s3cret\ndisable-etcd: true\n{}", join(&plane)));
        let refused = other.fail("timeout 60 k3s server");
        assert!(
            refused.contains("has no etcd that could be joined (etcd disabled): name one that has it"),
            "{refused}"
        );
    });
}

#[test]
fn members_of_etcd_that_hang_or_are_lost_are_left() {
    let network = Network::new();
    let [one, mut two, three] = ["one", "two", "three"].map(|name| Node::boot(&network, name));
    let plane = Node::boot(&network, "plane");
    let flags = "--disable-agent";
    set_up(&one, &format!("{ETCD_ALONE}cluster-init: true\n"));
    for server in [&two, &three] {
        set_up(server, &format!("{ETCD_ALONE}{}", join(&one)));
    }
    set_up(&plane, &format!("token: s3cret\ndisable-etcd: true\n{}", join(&one)));

    step("three servers of etcd alone, and one of the control plane", || {
        for server in [&one, &two, &three] {
            server.start_k3s(flags);
        }
        for server in [&one, &two, &three] {
            wait_for_voters(server, &[&one, &two, &three]);
        }
        plane.start_k3s(flags);
        plane.wait_until_written("first");
    });
    step("whichever of them hangs, writes go on", || {
        for server in [&one, &two, &three] {
            server.succeed("pkill -STOP -x etcd");
            let name = format!("without-{}", server.name());
            plane.wait_until_written(&name);
            server.succeed("pkill -CONT -x etcd");
            plane.wait_for_status(&format!("{}:2379", server.address()));
            wait_for_voters(server, &[&one, &two, &three]);
        }
    });
    step("too few of them are left: the control plane names those that are away", || {
        one.stop_k3s();
        two.crash();
        let sentence = plane.wait_for_status("etcd has no leader, as 1 of 3 members answer and 2 are needed");
        assert!(sentence.contains(&format!("{}:2379, {}:2379", one.address(), two.address())), "{sentence}");
    });
    step("a reset leaves one, by the flags of its configuration, and the control plane goes on with it", || {
        three.stop_k3s();
        let reset = three.succeed("k3s server --cluster-reset");
        assert!(reset.contains("is the only member of etcd, with the data that it had"), "{reset}");
        assert!(reset.contains("Start k3s server again, without --cluster-reset."), "{reset}");
        let again = three.execute("k3s server --cluster-reset");
        assert_eq!(again.code, 78, "{again}");
        assert!(again.stderr.contains("start the server without --cluster-reset"), "{again}");
        three.start_k3s(flags);
        wait_for_voters(&three, &[&three]);
        plane.wait_until_written("after-reset");
        plane.kubectl("get configmap first without-one without-three");
    });
    step("another one joins anew, by what the reset has said", || {
        two.start();
        set_up(&two, &format!("{ETCD_ALONE}{}", join(&three)));
        two.succeed("mv /var/lib/rancher/k3s/server/db/etcd /var/lib/lost");
        two.start_k3s(flags);
        wait_for_voters(&three, &[&three, &two]);
        plane.wait_for_status(&format!("{}:2379", two.address()));
        plane.wait_until_written("last");
    });
}
