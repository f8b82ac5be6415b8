//! Secrets are encrypted in the datastore, and their keys exchanged while clients write and the server dies.

use std::collections::BTreeSet;

use cluster_tests::{Finished, Network, Node, PATIENCE, step};

use crate::refusal::{DATA_ERROR, last_line};

const DATA: &str = "/var/lib/rancher/k3s/server";
const SECRETS: usize = 200;

#[test]
fn keys_are_exchanged_while_clients_write_and_the_server_dies() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    step("Secrets are in the clear, and keys not exchanged", || {
        server.start_k3s("");
        server.wait_until_ready();
        server.kubectl("create secret generic old --from-literal=value=in-the-clear");
        let told = server.succeed("k3s secrets-encrypt status");
        assert_eq!(told.trim(), "Encryption Status: Disabled, no configuration file found");
        refused(&server.execute("k3s secrets-encrypt rotate-keys"), "encryption of Secrets is not set up");
        assert!(stored(&server, "old").starts_with("k8s"), "the check itself finds what is stored");
        assert!(!stored(&server, "old").starts_with("k8s:enc:"));
    });
    let mut k3s = step("a start with --secrets-encryption encrypts those that are there, too", || {
        server.stop_k3s();
        let k3s = server.start_k3s("--secrets-encryption");
        server.wait_until_ready();
        let told = wait_until_finished(&server);
        assert!(
            told.contains("Encryption Status: Enabled\n") && told.contains(" *      AES-CBC   aescbckey\n"),
            "{told}"
        );
        assert!(stored(&server, "old").starts_with("k8s:enc:aescbc:v1:aescbckey:"));
        server.kubectl("create secret generic new --from-literal=value=never-in-the-clear");
        let found = server.execute(&format!("grep -lr never-in-the-clear {DATA}/db"));
        assert_eq!(found.code, 1, "{}", found.stdout);
        let modes = server.succeed(&format!("stat -c %a {DATA}/cred/encryption-*.json"));
        assert_eq!(modes, "600\n600\n");
        k3s
    });
    step("a stage that does not follow is refused", || {
        let asked = server.execute("k3s secrets-encrypt reencrypt");
        refused(&asked, "incorrect stage: reencrypt_finished; run `k3s secrets-encrypt rotate` first");
        let listed = server.kubectl("get events -A -o jsonpath='{.items[*].reason}'");
        assert!(listed.contains("SecretsUpdateComplete"), "{listed}");
    });
    step("many Secrets", || {
        let secret = |n: usize| {
            format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: many-{n}}}\nstringData: {{value: v-{n}}}\n")
        };
        server.apply(&(0..SECRETS).map(secret).collect::<Vec<_>>().join("---\n"));
    });
    step("keys are exchanged while a client writes, and the server is killed in the middle, twice", || {
        let writer = server.background(
            "i=0; while :; do
               if k3s kubectl create secret generic written-$i --from-literal=value=$i >/dev/null 2>&1; then echo $i >> /tmp/written; fi
               i=$((i+1))
             done",
        );
        server.background("k3s secrets-encrypt rotate-keys");
        server.wait_until_succeeds(&format!("grep -q ^reencrypt_active {DATA}/cred/encryption-state.json"), PATIENCE);
        server.wait_until_succeeds("test -s /tmp/written", PATIENCE);
        for _ in 0..2 {
            server.succeed(&format!("kill -KILL {0}; tail --pid={0} -f /dev/null", k3s.pid));
            k3s = server.start_k3s("--secrets-encryption");
            server.wait_until_succeeds("k3s kubectl get --raw /readyz", PATIENCE);
        }
        let told = wait_until_finished(&server);
        server.succeed(&format!("kill {}", writer.pid));
        assert!(told.contains(" *      AES-CBC   aescbckey-20"), "{told}");
        assert!(!told.contains(" aescbckey\n"), "the old key is gone: {told}");
    });
    step("everything is there, with the new key", || {
        let values = server.kubectl(
            "get secrets -o go-template='{{range .items}}{{.metadata.name}} {{.data.value | base64decode}}{{\"\\n\"}}{{end}}'",
        );
        let has = |line: &str| values.lines().any(|known| known == line);
        assert!(has("old in-the-clear") && has("new never-in-the-clear"), "{values}");
        for n in 0..SECRETS {
            assert!(has(&format!("many-{n} v-{n}")), "{n}");
        }
        for n in server.succeed("cat /tmp/written").lines() {
            assert!(has(&format!("written-{n} {n}")), "{n}");
        }
        for name in ["old", "new", "many-0", "many-199", "written-0"] {
            assert!(stored(&server, name).starts_with("k8s:enc:aescbc:v1:aescbckey-"), "{name}");
        }
    });
}

#[test]
fn a_server_killed_in_each_stage_loses_no_secret() {
    const SECRETS: usize = 1000;
    let network = Network::new();
    let server = Node::boot(&network, "server");
    let flags = "--secrets-encryption";
    let mut k3s = step("a thousand Secrets, and a client that writes more", || {
        let k3s = server.start_k3s(flags);
        server.wait_until_succeeds("k3s kubectl get namespace default", PATIENCE);
        let secret = |n: usize| {
            format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: many-{n}}}\nstringData: {{value: v-{n}}}\n")
        };
        server.write("/tmp/many.yaml", &(0..SECRETS).map(secret).collect::<Vec<_>>().join("---\n"));
        server.kubectl("create -f /tmp/many.yaml >/dev/null");
        server.wait_until_succeeds("k3s secrets-encrypt status | grep 'All hashes match'", PATIENCE);
        server.write(
            "/tmp/writer",
            "i=0; while test ! -e /tmp/enough; do
               if k3s kubectl --request-timeout=5s create secret generic written-$i --from-literal=value=$i >/dev/null 2>&1; then
                 echo $i >> /tmp/written
               fi
               i=$((i+1))
             done; touch /tmp/ended",
        );
        server.background("exec sh /tmp/writer");
        k3s
    });
    let mut restart = |moment: &str| {
        server.succeed(&format!("{moment}; kill -KILL {0}; tail --pid={0} -f /dev/null", k3s.pid));
        k3s = server.start_k3s(flags);
        server.wait_until_succeeds("k3s kubectl get --raw /readyz", PATIENCE);
        server.wait_until_succeeds("k3s secrets-encrypt status | grep 'All hashes match'", PATIENCE);
    };
    let state = format!("{DATA}/cred/encryption-state.json");
    let reaches = |stages: &str| format!("until grep -qE '^({stages})-' {state}; do sleep 0.01; done");
    for verb in ["prepare", "rotate"] {
        step(&format!("killed while {verb} is asked for, and again when it is done"), || {
            server.background(&format!("k3s secrets-encrypt {verb}"));
            restart("sleep 0.2");
            // It was stored, or it was not.
            if server.execute(&format!("grep -q ^{verb}- {state}")).code != 0 {
                server.succeed(&format!("k3s secrets-encrypt {verb}"));
            }
            restart(&reaches(verb));
        });
    }
    step("killed while Secrets are written again", || {
        server.background("k3s secrets-encrypt reencrypt");
        restart(&reaches("reencrypt_active"));
        let told = wait_until_finished(&server);
        assert!(!told.contains(" aescbckey\n"), "the first key is gone: {told}");
    });
    step("killed in each stage of rotate-keys", || {
        server.background("k3s secrets-encrypt rotate-keys");
        restart(&reaches("rotate_keys|reencrypt_active"));
        restart(&reaches("reencrypt_active|reencrypt_finished"));
        wait_until_finished(&server);
    });
    step("all of them can be read, with one key", || {
        server.succeed("touch /tmp/enough");
        server.wait_until_succeeds("test -e /tmp/ended", PATIENCE);
        let values = server.kubectl(
            "get secrets -o go-template='{{range .items}}{{.metadata.name}} {{.data.value | base64decode}}{{\"\\n\"}}{{end}}'",
        );
        let values: BTreeSet<&str> = values.lines().collect();
        let lost =
            |names: &[String]| names.iter().filter(|line| !values.contains(line.as_str())).cloned().collect::<Vec<_>>();
        let many: Vec<_> = (0..SECRETS).map(|n| format!("many-{n} v-{n}")).collect();
        let written: Vec<_> = server.succeed("cat /tmp/written").lines().map(|n| format!("written-{n} {n}")).collect();
        println!("  {} Secrets were written meanwhile", written.len());
        assert_eq!((lost(&many), lost(&written)), (Vec::new(), Vec::new()));
        let keys = server.succeed("k3s secrets-encrypt status | grep -c aescbckey");
        assert_eq!(keys.trim(), "1");
        let query = "SELECT DISTINCT CAST(substr(value, 1, 43) AS TEXT) FROM kine WHERE deleted = 0 AND id IN (SELECT MAX(id) FROM kine WHERE name LIKE '/registry/secrets/default/%' GROUP BY name)";
        let written_by = server.succeed(&format!("sqlite3 -readonly {DATA}/db/state.db \"{query}\""));
        assert_eq!(written_by.lines().count(), 1, "{written_by}");
    });
}

#[test]
fn encryption_is_switched_off_and_goes_on_with_another_cipher_stage_by_stage() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    // kube-apiserver looks at its keys once a minute, and when it starts.
    let load = |stages: &str| {
        server.wait_until_succeeds(&format!("grep -qE '^({stages})-' {DATA}/cred/encryption-state.json"), PATIENCE);
        server.kill(server.components()["kube-apiserver"]);
        server.wait_until_succeeds("k3s kubectl get --raw /readyz", PATIENCE);
        server.wait_until_succeeds("k3s secrets-encrypt status | grep 'All hashes match'", PATIENCE);
    };
    step("off, Secrets are in the clear again", || {
        server.start_k3s("--secrets-encryption");
        server.wait_until_ready();
        server.kubectl("create secret generic one --from-literal=value=one");
        assert!(stored(&server, "one").starts_with("k8s:enc:aescbc:v1:aescbckey:"));
        server.background("k3s secrets-encrypt disable");
        load("reencrypt_active|reencrypt_finished");
        let told = wait_until_finished(&server);
        assert!(
            told.starts_with("Encryption Status: Disabled\n") && told.contains("        AES-CBC   aescbckey\n"),
            "{told}"
        );
        assert!(!stored(&server, "one").starts_with("k8s:enc:"));
        refused(&server.execute("k3s secrets-encrypt prepare"), "encryption of Secrets is off");
    });
    step("an exchange of keys leads to another cipher", || {
        server.stop_k3s();
        server.start_k3s("--secrets-encryption --secrets-encryption-provider=secretbox");
        server.wait_until_ready();
        server.background("k3s secrets-encrypt rotate-keys");
        load("reencrypt_active");
        let told = wait_until_finished(&server);
        assert!(
            told.starts_with("Encryption Status: Enabled\n")
                && told.contains(" *      XSalsa20-POLY1305  secretboxkey-20"),
            "{told}"
        );
        assert!(stored(&server, "one").starts_with("k8s:enc:secretbox:v1:"));
    });
    step("keys are exchanged stage by stage", || {
        let told = server.succeed("k3s secrets-encrypt prepare");
        assert_eq!(told, "prepare completed successfully\n");
        refused(&server.execute("k3s secrets-encrypt rotate"), "the servers do not agree: hash does not match between");
        load("prepare");
        assert_eq!(server.succeed("k3s secrets-encrypt rotate"), "rotate completed successfully\n");
        load("rotate");
        let keys = "k3s secrets-encrypt status -o json | grep -c secretboxkey";
        assert_eq!(server.succeed("k3s secrets-encrypt reencrypt --skip"), "reencryption started\n");
        server.wait_until_succeeds("k3s kubectl get events -A | grep SecretsUpdateComplete", PATIENCE);
        assert_eq!(server.succeed(keys), "2\n");
        assert_eq!(server.succeed("k3s secrets-encrypt reencrypt"), "reencryption started\n");
        server.wait_until_succeeds(&format!("test $({keys}) = 1"), PATIENCE);
        wait_until_finished(&server);
        assert_eq!(server.kubectl("get secret one -o go-template='{{.data.value | base64decode}}'"), "one");
    });
}

#[test]
fn a_new_key_writes_nothing_before_every_server_reads_it() {
    let network = Network::new();
    let store = Node::boot(&network, "store");
    let servers = [Node::boot(&network, "one"), Node::boot(&network, "two")];
    let [one, two] = &servers;
    let config = format!("{DATA}/cred/encryption-config.json");
    let digest = |server: &Node| server.succeed(&format!("sha256sum < {config}"));
    step("two servers have one key", || {
        store.background(
            "exec k3s datastore serve --endpoint=sqlite:///var/lib/store.db --listen=http://0.0.0.0:2379 --insecure-listen",
        );
        let flags =
            format!("--datastore-endpoint=http://{}:2379 --token=correct-horse --secrets-encryption", store.address());
        for server in &servers {
            server.start_k3s(&flags);
        }
        for server in &servers {
            server.wait_until_ready();
            server.wait_until_succeeds("k3s secrets-encrypt status | grep 'All hashes match'", PATIENCE);
        }
        assert_eq!(digest(one), digest(two));
        one.kubectl("create secret generic before --from-literal=value=before");
    });
    let before = digest(one);
    // kube-apiserver looks at its keys once a minute, and when it starts. It may be faster than this.
    let load = |stages: &str| {
        for server in &servers {
            server.wait_until_succeeds(&format!("grep -qE '^({stages})-' {DATA}/cred/encryption-state.json"), PATIENCE);
            server.kill(server.components()["kube-apiserver"]);
        }
        for server in &servers {
            server.wait_until_succeeds("k3s kubectl get --raw /readyz", PATIENCE);
        }
    };
    let both_read = |name: &str| {
        for (writer, reader) in [(one, two), (two, one)] {
            let name = format!("{name}-{}", writer.name());
            writer.wait_until_succeeds(
                &format!("k3s kubectl create secret generic {name} --from-literal=value={name}"),
                PATIENCE,
            );
            let read = format!("k3s kubectl get secret {name} -o go-template='{{{{.data.value | base64decode}}}}'");
            assert_eq!(reader.wait_until_succeeds(&read, PATIENCE), name);
        }
    };
    step("both read a new key before one of them writes with it", || {
        two.background("k3s secrets-encrypt rotate-keys > /tmp/rotated 2>&1");
        load("rotate_keys|reencrypt_active|reencrypt_finished");
        both_read("prepared");
    });
    step("both write with it, and then all Secrets are", || {
        load("reencrypt_active|reencrypt_finished");
        both_read("active");
        for server in &servers {
            let told = wait_until_finished(server);
            assert!(!told.contains(" aescbckey\n"), "{told}");
        }
        two.wait_until_succeeds("grep -qx 'keys rotated, reencryption finished' /tmp/rotated", PATIENCE);
        assert_eq!(digest(one), digest(two));
        assert_ne!(digest(one), before);
        both_read("finished");
        assert_eq!(two.kubectl("get secret before -o go-template='{{.data.value | base64decode}}'"), "before");
    });
}

/// Waits until all Secrets are written again; returns what is told then.
fn wait_until_finished(server: &Node) -> String {
    server.wait_until_succeeds(
        "k3s secrets-encrypt status | tee /tmp/told | grep -q reencrypt_finished && grep -q 'All hashes match' /tmp/told && cat /tmp/told",
        PATIENCE,
    )
}

/// One sentence says why nothing is done. It may name the verb, which has "secret" in it.
#[track_caller]
fn refused(finished: &Finished, sentence: &str) {
    assert_eq!(finished.code, DATA_ERROR, "{finished}");
    assert!(last_line(finished).contains(sentence), "{finished}");
}

/// How the newest revision of a Secret begins in the database.
fn stored(server: &Node, name: &str) -> String {
    let query = format!(
        "SELECT CAST(substr(value, 1, 28) AS TEXT) FROM kine WHERE name = '/registry/secrets/default/{name}' ORDER BY id DESC LIMIT 1"
    );
    server.succeed(&format!("sqlite3 -readonly {DATA}/db/state.db \"{query}\""))
}
