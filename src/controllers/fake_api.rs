//! An API server for the tests of this room: objects by path, in this process, with as much of the protocol as controllers use. What the
//! real one does beyond that is tested on it (`against_an_api.rs`, and the scenarios).

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
};

use futures_util::{StreamExt as _, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame};
use k3s_supervise::{Options, Supervisor, cgroup::CgroupPlace, log::Target};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower::service_fn;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Runs tasks, and leaves the machine's cgroups alone.
pub(crate) fn supervisor() -> Supervisor {
    let options = Options { log: Target::Stderr, cgroups: CgroupPlace::Nowhere };
    Supervisor::new(options).unwrap()
}

/// Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct FakeApi(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// By path, as `/api/v1/nodes/edge-1`.
    objects: BTreeMap<String, Value>,
    /// What discovery answers, by path.
    served: HashMap<String, Value>,
    refused: HashMap<String, String>,
    watchers: Vec<Watcher>,
    /// Version, path and line of each event: a watch begins with those after the version that it names.
    events: Vec<(u64, String, Bytes)>,
    watches: HashMap<String, usize>,
    version: u64,
}

struct Watcher {
    collection: String,
    name: Option<String>,
    events: mpsc::UnboundedSender<Bytes>,
}

impl Watcher {
    fn wants(&self, path: &str) -> bool {
        let (collection, name) = path.rsplit_once('/').unwrap();
        let all = !self.collection.contains("/namespaces/") && last(collection) == last(&self.collection);
        (collection == self.collection || all) && self.name.as_deref().is_none_or(|wanted| wanted == name)
    }
}

impl FakeApi {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let serve = move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.respond(request).await) }
        };
        Client::new(service_fn(serve), "default")
    }

    /// Makes or replaces an object, by somebody else.
    pub(crate) fn put(&self, collection: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.lock().set(&format!("{collection}/{name}"), object);
    }

    /// Deletes an object, by somebody else.
    pub(crate) fn delete(&self, path: &str) {
        self.lock().remove(path).expect("it is there");
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.lock().objects.get(path).cloned()
    }

    /// The paths of all objects.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    /// Makes the API serve resources of a group and version: path, kind, and whether they are in namespaces.
    pub(crate) fn serve(&self, group_version: &str, resources: &[(&str, &str, bool)]) {
        let path = if group_version.contains('/') {
            format!("/apis/{group_version}")
        } else {
            format!("/api/{group_version}")
        };
        let resource = |(name, kind, namespaced): &(&str, &str, bool)| json!({"name": name, "singularName": "", "kind": kind, "namespaced": namespaced, "verbs": ["list", "patch"]});
        let resources: Vec<_> = resources.iter().map(resource).collect();
        let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources});
        self.lock().served.insert(path, list);
    }

    /// Refuses every change of the object at `path`.
    pub(crate) fn refuse(&self, path: &str, why: &str) {
        self.lock().refused.insert(path.to_owned(), why.to_owned());
    }

    pub(crate) fn allow(&self, path: &str) {
        self.lock().refused.remove(path);
    }

    /// How many watches of a resource were begun.
    pub(crate) fn watches(&self, resource: &str) -> usize {
        self.lock().watches.get(resource).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    async fn respond(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let content = parts.headers.get(http::header::CONTENT_TYPE).map(|value| value.to_str().unwrap().to_owned());
        let is_list = |path: &str| path.rsplit('/').next().is_some_and(|last| COLLECTIONS.contains(&last));
        let mut state = self.lock();
        if let Some(resources) = state.served.get(&path) {
            return json_response(StatusCode::OK, resources);
        }
        match parts.method {
            Method::GET if query.contains("watch=true") || query.contains("watch=1") => state.watch(&path, &query),
            Method::GET if is_list(&path) => state.list(&path, &query),
            Method::GET => match state.objects.get(&path) {
                Some(object) => json_response(StatusCode::OK, object),
                None => status(StatusCode::NOT_FOUND, "NotFound", &format!("{path} not found")),
            },
            method => {
                let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
                let path = match method {
                    // A status is changed with its object.
                    Method::PATCH if path.ends_with("/status") => path.trim_end_matches("/status").to_owned(),
                    Method::POST => format!("{path}/{}", sent["metadata"]["name"].as_str().unwrap_or_default()),
                    _ => path,
                };
                if query.contains("dryRun") {
                    return json_response(StatusCode::OK, &sent);
                }
                if let Some(why) = state.refused.get(&path) {
                    let why = why.clone();
                    return status(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &why);
                }
                state.change(&method, &path, sent, content.as_deref())
            }
        }
    }
}

/// What the last part of a collection's path may be.
const COLLECTIONS: &[&str] = &[
    "nodes",
    "pods",
    "secrets",
    "configmaps",
    "services",
    "namespaces",
    "networkpolicies",
    "deployments",
    "endpoints",
    "endpointslices",
    "leases",
    "addons",
    "customresourcedefinitions",
    "widgets",
    "events",
    "clusterroles",
    "serviceaccounts",
    "daemonsets",
    "helmcharts",
];

impl State {
    fn set(&mut self, path: &str, mut object: Value) {
        self.version += 1;
        let before = self.objects.get(path);
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let uid =
            before.map_or_else(|| json!(format!("uid-{}", self.version)), |before| before["metadata"]["uid"].clone());
        object["metadata"]["uid"] = uid;
        let what = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.objects.insert(path.to_owned(), object.clone());
        self.tell(path, what, &object);
    }

    fn remove(&mut self, path: &str) -> Option<Value> {
        let mut object = self.objects.remove(path)?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.tell(path, "DELETED", &object);
        Some(object)
    }

    fn tell(&mut self, path: &str, what: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({"type": what, "object": object})));
        self.events.push((self.version, path.to_owned(), line.clone()));
        self.watchers.retain(|watcher| !watcher.wants(path) || watcher.events.send(line.clone()).is_ok());
    }

    fn watch(&mut self, path: &str, query: &str) -> Answer {
        let (events, mut received) = mpsc::unbounded_channel();
        *self.watches.entry(last(path).to_owned()).or_default() += 1;
        let watcher = Watcher { collection: path.to_owned(), name: name_in(query), events };
        let since = query.split('&').find_map(|part| part.strip_prefix("resourceVersion=")?.parse().ok()).unwrap_or(0);
        for (_, path, line) in self.events.iter().filter(|(version, ..)| *version > since) {
            if watcher.wants(path) {
                let _ = watcher.events.send(line.clone());
            }
        }
        self.watchers.push(watcher);
        let lines = stream::poll_fn(move |context| received.poll_recv(context));
        let body = StreamBody::new(lines.map(|line| Ok::<_, Infallible>(Frame::data(line))));
        Response::new(body.boxed_unsync())
    }

    fn list(&self, path: &str, query: &str) -> Answer {
        let name = name_in(query);
        let label = query.split('&').find_map(|part| part.strip_prefix("labelSelector=")).map(decode);
        let items: Vec<_> = self
            .objects
            .iter()
            .filter(|(object, _)| {
                let (collection, object) = object.rsplit_once('/').unwrap();
                let all = !path.contains("/namespaces/") && collection.ends_with(&format!("/{}", last(path)));
                (collection == path || all) && name.as_deref().is_none_or(|name| name == object)
            })
            .map(|(_, object)| object)
            .filter(|object| label.as_deref().is_none_or(|label| has_labels(object, label)))
            .collect();
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": self.version.to_string()}, "items": items});
        json_response(StatusCode::OK, &list)
    }

    fn change(&mut self, method: &Method, path: &str, sent: Value, content: Option<&str>) -> Answer {
        let present = self.objects.get(path).cloned();
        let conflicts = match (&present, sent["metadata"]["resourceVersion"].as_str()) {
            (Some(present), Some(version)) => present["metadata"]["resourceVersion"] != version,
            _ => false,
        };
        if conflicts {
            return status(StatusCode::CONFLICT, "Conflict", "the object has been modified");
        }
        let object = match (method, present) {
            (&Method::POST, Some(_)) => {
                return status(StatusCode::CONFLICT, "AlreadyExists", &format!("{path} already exists"));
            }
            (&Method::DELETE, Some(mut object)) if object["metadata"]["finalizers"].is_array() => {
                object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                object
            }
            (&Method::DELETE, Some(object)) => {
                self.remove(path);
                return json_response(StatusCode::OK, &object);
            }
            (&Method::PATCH, Some(mut present)) => {
                merge(&mut present, &sent);
                present
            }
            (&Method::PATCH, None) if content != Some("application/apply-patch+yaml") => {
                return status(StatusCode::NOT_FOUND, "NotFound", &format!("{path} not found"));
            }
            (&Method::PUT | &Method::DELETE, None) => {
                return status(StatusCode::NOT_FOUND, "NotFound", &format!("{path} not found"));
            }
            _ => sent,
        };
        // Writing what is there already changes nothing, as in the real one.
        let mut same = object.clone();
        if let Some(present) = self.objects.get(path) {
            for key in ["resourceVersion", "uid"] {
                same["metadata"][key] = present["metadata"][key].clone();
            }
        }
        if self.objects.get(path) != Some(&same) {
            self.set(path, object);
        }
        json_response(StatusCode::OK, &self.objects[path])
    }
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn name_in(query: &str) -> Option<String> {
    let fields = query.split('&').find_map(|part| part.strip_prefix("fieldSelector="))?;
    decode(fields).strip_prefix("metadata.name=").map(str::to_owned)
}

fn decode(text: &str) -> String {
    [("%3D", "="), ("%2C", ","), ("%2F", "/"), ("%21", "!")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn has_labels(object: &Value, selector: &str) -> bool {
    selector.split(',').all(|part| match part.split_once('=') {
        Some((key, value)) => object["metadata"]["labels"][key] == value,
        None => !object["metadata"]["labels"][part].is_null(),
    })
}

/// RFC 7396.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => drop(into.as_object_mut().unwrap().remove(key)),
            value => merge(&mut into[key], value),
        }
    }
}

fn json_response(status: StatusCode, value: &Value) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(serde_json::to_vec(value).unwrap())).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn status(code: StatusCode, reason: &str, message: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code.as_u16(),
    });
    json_response(code, &status)
}
