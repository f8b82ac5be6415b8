//! The controller as a whole, on folders and an API of the tests' own.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use k3s_supervise::{Supervisor, TaskStatus};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    ClusterView, Registry, Shared,
    fake_api::{self, FakeApi},
};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const ADDONS: &str = "/apis/k3s.cattle.io/v1/namespaces/kube-system/addons";

/// A server's folder and its cluster.
struct Server {
    folder: PathBuf,
    disabled: Vec<&'static str>,
    api: FakeApi,
    supervisor: Supervisor,
    _dir: tempfile::TempDir,
}

impl Server {
    fn new() -> Self {
        let api = FakeApi::new();
        api.serve("v1", &[("configmaps", "ConfigMap", true), ("namespaces", "Namespace", false)]);
        api.serve("apiextensions.k8s.io/v1", &[("customresourcedefinitions", "CustomResourceDefinition", false)]);
        api.serve("k3s.cattle.io/v1", &[("addons", "Addon", true)]);
        api.serve(
            "rbac.authorization.k8s.io/v1",
            &[("clusterroles", "ClusterRole", false), ("clusterrolebindings", "ClusterRoleBinding", false)],
        );
        let supervisor = fake_api::supervisor();
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("manifests");
        fs::create_dir(&folder).unwrap();
        // What comes with the program is tested elsewhere.
        for packaged in packaged::PACKAGED {
            let mark = folder.join(format!("{}.skip", packaged.path));
            fs::create_dir_all(mark.parent().unwrap()).unwrap();
            fs::write(mark, "").unwrap();
        }
        Self { folder, disabled: Vec::new(), api, supervisor, _dir: dir }
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        let path = self.folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // As tools write that care: never half a file.
        let new = self.folder.join(".new");
        fs::write(&new, contents).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// Runs the controller while `story` is told.
    async fn run(&self, story: impl Future<Output = ()>) {
        let deploy = Deploy::example(&self.folder, &self.disabled);
        let client = self.api.client();
        let shared = Shared {
            view: ClusterView::of_server(client.clone()),
            client,
            supervisor: self.supervisor.clone(),
            leads: watch::channel(true).1,
        };
        let mut registry = Registry::default();
        registry.add(Some(deploy));
        let shutdown = CancellationToken::new();
        let story = async {
            story.await;
            shutdown.cancel();
        };
        tokio::join!(registry.run(&shared, &shutdown), story);
    }

    async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..6000 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} did not come about: {:?} {:?}", self.api.paths(), self.task().await);
    }

    async fn task(&self) -> TaskStatus {
        self.supervisor.status().await.tasks.remove(0)
    }

    async fn problems(&self) -> Vec<(String, String)> {
        self.task().await.problems.into_iter().map(|problem| (problem.object, problem.why)).collect()
    }

    async fn until_problem(&self, object: &str) -> String {
        for _ in 0..6000 {
            if let Some((_, why)) = self.problems().await.into_iter().find(|(of, _)| of == object) {
                return why;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{object} has no problem: {:?}", self.task().await);
    }

    fn config_map(&self, name: &str) -> Option<Value> {
        self.api.get(&format!("{CONFIG_MAPS}/{name}"))
    }

    fn addon(&self, name: &str) -> Option<Value> {
        self.api.get(&format!("{ADDONS}/{name}"))
    }

    /// Whether a file was applied whole, as it is now.
    fn is_applied(&self, name: &str) -> bool {
        let contents = fs::read(self.folder.join(name)).unwrap();
        let checksum =
            data_encoding::HEXLOWER.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &contents).as_ref());
        self.addon(&folder::addon_name(Path::new(name))).is_some_and(|addon| addon["spec"]["checksum"] == checksum)
    }

    async fn until_applied(&self, name: &str) {
        self.until(&format!("applying {name}"), || self.is_applied(name)).await;
    }
}

fn config_map(name: &str, data: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}).to_string()
}

#[tokio::test]
async fn a_file_is_followed_from_its_first_to_its_last_day() {
    let server = Server::new();
    server
        .run(async {
            server.write(
                "app.yaml",
                config_map("app", &json!({"a": "1", "b": "2"})) + "\n---\n" + &config_map("other", &json!({})),
            );
            server.until_applied("app.yaml").await;
            let object = server.config_map("app").unwrap();
            assert_eq!(object["metadata"]["annotations"]["objectset.rio.cattle.io/owner-name"], "app");
            let addon = server.addon("app").unwrap();
            assert_eq!(addon["spec"]["source"], server.folder.join("app.yaml").display().to_string());
            assert_eq!(addon["metadata"]["annotations"]["addon.k3s.cattle.io/gvks"], "/v1, Kind=ConfigMap");

            // Changed, with an object less.
            server.write("app.yaml", config_map("app", &json!({"a": "3"})));
            server.until_applied("app.yaml").await;
            assert_eq!(server.config_map("app").unwrap()["data"]["a"], "3");
            assert_eq!(server.config_map("other"), None, "what left the file left the cluster");

            // Broken, and mended.
            server
                .write("app.yaml", config_map("app", &json!({"a": "4"})) + "\n---\napiVersion: v1\nkind: ConfigMap\n");
            let why = server.until_problem("app.yaml").await;
            assert_eq!(why, "document 2, line 3: the ConfigMap has no metadata.name");
            assert_eq!(server.config_map("app").unwrap()["data"]["a"], "3", "nothing of it is applied");
            let events = server.api.paths().into_iter().filter(|path| path.contains("/events/app.")).count();
            assert!(events >= 3, "applying, applied, and why not");
            server.write("app.yaml", config_map("app", &json!({"a": "4"})));
            server.until_applied("app.yaml").await;
            while !server.problems().await.is_empty() {
                tokio::task::yield_now().await;
            }

            // Its name is another add-on's, which takes the objects over.
            fs::rename(server.folder.join("app.yaml"), server.folder.join("renamed.yaml")).unwrap();
            server.until_applied("renamed.yaml").await;
            let object = server.config_map("app").unwrap();
            assert_eq!(object["metadata"]["annotations"]["objectset.rio.cattle.io/owner-name"], "renamed");

            // Deleted: its objects stay, as in k3s.
            fs::remove_file(server.folder.join("renamed.yaml")).unwrap();
            server.write("next.yaml", config_map("next", &json!({})));
            server.until_applied("next.yaml").await;
            assert!(server.config_map("app").is_some() && server.addon("renamed").is_some());
        })
        .await;
}

#[tokio::test]
async fn files_as_tools_leave_them_are_applied_and_a_broken_one_harms_no_other() {
    let server = Server::new();
    let one = config_map("one", &json!({}));
    server.write("bom.yaml", format!("\u{feff}{}", one.replace("one", "bom")));
    server.write("crlf.yml", "apiVersion: v1\r\nkind: ConfigMap\r\nmetadata:\r\n  name: crlf\r\n---\r\n");
    server.write("comments.yaml", "# nothing\n---\n# yet\n");
    server.write("empty.yaml", "");
    server.write("json.JSON", one.replace("one", "json"));
    server.write("large.yaml", config_map("large", &json!({"data": "x".repeat(1 << 20)})));
    server.write(
        "lists.yaml",
        format!(
            "{{apiVersion: v1, kind: List, items: [{{apiVersion: v1, kind: List, items: [{}]}}]}}",
            one.replace("one", "listed")
        ),
    );
    server.write("broken.yaml", "a: [");
    server.write("binary.yaml", b"\xff\xfe");
    server.write("ignored.txt", one.replace("one", "ignored"));
    server.write(".hidden.yaml", one.replace("one", "hidden"));
    server.write("skipped.yaml", one.replace("one", "skipped"));
    server.write("skipped.yaml.skip", "");
    symlink("nowhere", server.folder.join("dangling.yaml")).unwrap();
    // Of which there is no end, or of which there is no begin.
    symlink("/dev/zero", server.folder.join("device.yaml")).unwrap();
    nix::unistd::mkfifo(&server.folder.join("pipe.yaml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    symlink(".", server.folder.join("loop")).unwrap();
    server.write("My_App.yaml", one.replace("one", "unnamed"));
    server.write("long.yaml", "x".repeat(1 << 20));
    fs::File::create(server.folder.join("huge.yaml")).unwrap().set_len(1 << 30).unwrap();
    server
        .run(async {
            for name in ["bom.yaml", "crlf.yml", "comments.yaml", "empty.yaml", "json.JSON", "large.yaml", "lists.yaml"]
            {
                server.until_applied(name).await;
            }
            for name in ["bom", "crlf", "json", "large", "listed"] {
                assert!(server.config_map(name).is_some(), "{name}");
            }
            for name in ["ignored", "hidden", "skipped"] {
                assert!(server.config_map(name).is_none(), "{name}");
            }
            let of = |name: &'static str| server.until_problem(name);
            assert_eq!(of("binary.yaml").await, "it is not UTF-8: save it as UTF-8");
            assert!(of("broken.yaml").await.starts_with("document 1, line 1: it is not YAML"));
            assert!(of("dangling.yaml").await.starts_with("it cannot be read: No such file or directory"));
            assert_eq!(of("device.yaml").await, "it cannot be read: it is no regular file");
            assert_eq!(of("pipe.yaml").await, "it cannot be read: it is no regular file");
            assert_eq!(
                of("huge.yaml").await,
                "it has 1024 MiB, and 16 MiB at most are read: divide it into several files"
            );
            assert_eq!(of("loop/bom.yaml").await, "it has the add-on name bom of bom.yaml: rename one of them");
            assert_eq!(
                of("My_App.yaml").await,
                "it cannot be an AddOn called \"My_App\": rename it to small letters, digits and - before its first dot"
            );
            let long = of("long.yaml").await;
            assert!(long.starts_with("document 1, line 1: it is no Kubernetes object") && long.len() < 700, "{long}");
            let pipe = loop {
                let listed = server.task().await.objects;
                if let Some(pipe) = listed.into_iter().find(|object| object.object == "pipe.yaml") {
                    break pipe;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            assert_eq!((&*pipe.state, pipe.why.as_deref()), ("unreadable", Some("it is no regular file")));
            let problems = server.problems().await;
            let of_this_folder = problems.iter().filter(|(name, _)| !name.starts_with("loop/")).count();
            assert_eq!(of_this_folder, 8, "{problems:?}");
        })
        .await;
}

#[tokio::test]
async fn what_cannot_be_read_is_told_for_as_long_as_it_is_there() {
    let server = Server::new();
    let link = server.folder.join("dangling.yaml");
    symlink("nowhere.yaml", &link).unwrap();
    server
        .run(async {
            server.until_problem("dangling.yaml").await;
            fs::remove_file(&link).unwrap();
            while !server.problems().await.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
}

#[tokio::test]
async fn a_broken_file_that_is_skipped_is_no_problem_any_more() {
    let server = Server::new();
    server.write("broken.yaml", "a: [");
    server
        .run(async {
            server.until_problem("broken.yaml").await;
            server.write("broken.yaml.skip", "");
            while !server.problems().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
}

#[tokio::test]
async fn what_a_manifest_says_of_an_object_last_counts_among_many() {
    let server = Server::new();
    let mut documents: Vec<_> = (0..50).map(|number| config_map(&format!("c{number}"), &json!({}))).collect();
    for value in ["1", "2", "3"] {
        documents.push(config_map("twice", &json!({"a": value})));
    }
    server.write("app.yaml", documents.join("\n---\n"));
    server
        .run(async {
            server.until_applied("app.yaml").await;
            assert_eq!(server.config_map("twice").unwrap()["data"]["a"], "3");
        })
        .await;
}

#[tokio::test]
async fn what_is_there_already_is_no_news_at_a_start() {
    let server = Server::new();
    server.write("app.yaml", config_map("app", &json!({"a": "1"})));
    server.run(async { server.until_applied("app.yaml").await }).await;
    let events = || server.api.paths().into_iter().filter(|path| path.contains("/events/app.")).count();
    let before = events();
    let mut object = server.config_map("app").unwrap();
    object["data"]["a"] = "by hand".into();
    server.api.put(CONFIG_MAPS, object);
    server
        .run(async {
            server.until("applying it again", || server.config_map("app").unwrap()["data"]["a"] == "1").await;
            server.write("next.yaml", config_map("next", &json!({})));
            server.until_applied("next.yaml").await;
        })
        .await;
    assert_eq!(events(), before);
}

#[tokio::test]
async fn a_file_keeps_its_objects_from_one_of_the_same_name_that_comes_later() {
    let server = Server::new();
    server.write("twin.yaml", config_map("mine", &json!({})));
    server
        .run(async {
            server.until_applied("twin.yaml").await;
            server.write("apps/twin.yaml", config_map("other", &json!({})));
            let why = server.until_problem("apps/twin.yaml").await;
            assert_eq!(why, "it has the add-on name twin of twin.yaml: rename one of them");
            assert!(server.config_map("mine").is_some() && server.config_map("other").is_none());
        })
        .await;
}

#[tokio::test]
async fn two_hundred_files_at_once_and_two_of_one_name() {
    let server = Server::new();
    for number in 0..200 {
        server.write(&format!("{number:03}.yaml"), config_map(&format!("c{number}"), &json!({})));
    }
    server.write("z/007.yaml", config_map("twin", &json!({})));
    server
        .run(async {
            server.until_applied("199.yaml").await;
            let why = server.until_problem("z/007.yaml").await;
            assert_eq!(why, "it has the add-on name 007 of 007.yaml: rename one of them");
            assert!(server.config_map("c7").is_some() && server.config_map("twin").is_none());
        })
        .await;
}

#[tokio::test]
async fn an_object_may_come_in_the_file_of_its_definition_and_before_it() {
    let server = Server::new();
    let widget = "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w, namespace: default}\n";
    let definition =
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: widgets.example.com}\n";
    server.write("app.yaml", format!("{widget}---\n{definition}"));
    server.write("orphan.yaml", widget.replace("example.com", "example.org"));
    server
        .run(async {
            server.until("the definition", || {
                server.api.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.example.com").is_some()
            }).await;
            // It takes the API a moment.
            tokio::time::sleep(Duration::from_millis(300)).await;
            server.api.serve("example.com/v1", &[("widgets", "Widget", true)]);
            server.until_applied("app.yaml").await;
            let why = server.until_problem("orphan.yaml").await;
            assert_eq!(
                why,
                "document 1, line 1: Widget default/w: the API serves no Widget of example.org/v1: its CustomResourceDefinition is missing"
            );
        })
        .await;
}

#[tokio::test]
async fn a_disabled_addon_goes_with_its_file_and_nothing_of_others_does() {
    let mut server = Server::new();
    server.write("web.yaml", config_map("dns", &json!({})) + "\n---\n" + &config_map("kept", &json!({})));
    server.run(async { server.until_applied("web.yaml").await }).await;
    // Of somebody else: one beside it, one that a user took out of the add-on's hands.
    server.api.put(CONFIG_MAPS, serde_json::from_str(&config_map("foreign", &json!({}))).unwrap());
    let mut kept = server.config_map("kept").unwrap();
    kept["metadata"]["annotations"]["objectset.rio.cattle.io/prune"] = "false".into();
    server.api.put(CONFIG_MAPS, kept);

    server.disabled = vec!["web"];
    server
        .run(async {
            server.until("deleting", || server.addon("web").is_none()).await;
            assert_eq!(server.config_map("dns"), None);
            assert!(server.config_map("foreign").is_some() && server.config_map("kept").is_some());
            assert!(!server.folder.join("web.yaml").exists());
            // One that comes while it is disabled goes as well.
            server.write("web.yml", config_map("dns", &json!({})));
            server.until("deleting the file", || !server.folder.join("web.yml").exists()).await;
            assert_eq!(server.config_map("dns"), None);
        })
        .await;
}

#[tokio::test]
async fn a_name_that_nothing_is_called_by_is_told_until_something_is() {
    let mut server = Server::new();
    server.disabled = vec!["coredns", "rolebindings", "servicelb", "trafik"];
    server
        .run(async {
            let why = server.until_problem("--disable=trafik").await;
            assert!(why.ends_with("these are coredns, servicelb"), "{why}");
            assert_eq!(server.problems().await.len(), 1);
            server.write("trafik.yaml", config_map("mine", &json!({})));
            server.until("deleting the file", || !server.folder.join("trafik.yaml").exists()).await;
            while !server.problems().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    assert_eq!(server.config_map("mine"), None);
}

#[tokio::test]
async fn charts_of_a_disabled_addon_go_one_after_another_from_the_last() {
    let mut server = Server::new();
    server.api.serve("helm.cattle.io/v1", &[("helmcharts", "HelmChart", true)]);
    let chart = |name: &str| {
        json!({"apiVersion": "helm.cattle.io/v1", "kind": "HelmChart",
            "metadata": {"name": name, "namespace": "kube-system", "finalizers": ["wrangler.cattle.io/on-helm-chart-remove"]}})
    };
    server.write("app.yaml", format!("{}\n---\n{}", chart("app-crd"), chart("app")));
    server.run(async { server.until_applied("app.yaml").await }).await;
    let path = |name: &str| format!("/apis/helm.cattle.io/v1/namespaces/kube-system/helmcharts/{name}");
    let is_going = |name: &str| {
        server.api.get(&path(name)).is_some_and(|chart| chart["metadata"]["deletionTimestamp"].is_string())
    };
    server.disabled = vec!["app"];
    server
        .run(async {
            assert_eq!(server.until_problem("app.yaml").await, "HelmChart kube-system/app is being uninstalled");
            assert!(is_going("app") && !is_going("app-crd") && server.folder.join("app.yaml").exists());
            server.api.delete(&path("app"));
            server.until("the first chart's turn", || is_going("app-crd")).await;
            server.api.delete(&path("app-crd"));
            server.until("the end of the add-on", || server.addon("app").is_none()).await;
            assert!(!server.folder.join("app.yaml").exists());
        })
        .await;
}

#[tokio::test]
async fn what_goes_from_an_authoritative_folder_leaves_the_cluster() {
    let server = Server::new();
    let store = tempfile::tempdir().unwrap();
    let generation = |number: u32, names: &[&str]| {
        let folder = store.path().join(number.to_string());
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(folder::AUTHORITATIVE), "").unwrap();
        for name in names {
            fs::write(
                folder.join(format!("{name}.yaml")),
                config_map(name, &json!({"generation": number.to_string()})),
            )
            .unwrap();
        }
        let (link, new) = (server.folder.join("nixos"), server.folder.join(".new"));
        symlink(folder, &new).unwrap();
        fs::rename(new, link).unwrap();
    };
    generation(1, &["a", "b"]);
    server.write("c.yaml", config_map("c", &json!({})));
    server
        .run(async {
            for name in ["nixos/a.yaml", "nixos/b.yaml", "c.yaml"] {
                server.until_applied(name).await;
            }
            generation(2, &["a"]);
            server.until_applied("nixos/a.yaml").await;
            server.until("deleting what is gone", || server.addon("b").is_none()).await;
            assert_eq!(server.config_map("b"), None);
            fs::remove_file(server.folder.join("c.yaml")).unwrap();
        })
        .await;
    // Also while no server runs; and a folder that is gone as a whole says nothing.
    generation(3, &[]);
    server.run(async { server.until("deleting the last", || server.addon("a").is_none()).await }).await;
    assert!(server.config_map("a").is_none() && server.config_map("c").is_some());
}

#[tokio::test]
async fn what_k3s_applied_is_taken_over_with_its_fields() {
    let server = Server::new();
    let mut object: Value = serde_json::from_str(&config_map("app", &json!({"old": "1", "kept": "2"}))).unwrap();
    let set = object_set::ObjectSet::of("app");
    let mut marked = serde_json::from_value(object.clone()).unwrap();
    set.mark(&mut marked);
    object["metadata"] = serde_json::to_value(&marked.metadata).unwrap();
    object["metadata"]["namespace"] = "default".into();
    object["metadata"]["managedFields"] = json!([
        {"manager": "deploy@server", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:old": {}}}},
        {"manager": "kubectl", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {}},
    ]);
    server.api.put(CONFIG_MAPS, object.clone());
    let mut gone = object;
    gone["metadata"]["name"] = "gone".into();
    server.api.put(CONFIG_MAPS, gone);
    server.write("app.yaml", config_map("app", &json!({"kept": "2"})));
    server
        .run(async {
            server.until_applied("app.yaml").await;
            let managers = server.config_map("app").unwrap()["metadata"]["managedFields"].clone();
            let managers: Vec<_> = managers
                .as_array()
                .unwrap()
                .iter()
                .map(|entry| (entry["manager"].clone(), entry["operation"].clone()))
                .collect();
            assert_eq!(managers, [("k3s".into(), "Apply".into()), ("kubectl".into(), "Update".into())]);
            assert_eq!(server.config_map("gone"), None, "its manifest holds it no more");
        })
        .await;
}
