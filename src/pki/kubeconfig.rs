//! Kubeconfigs, in the words k3s writes them: for components by file reference, for the user with everything inside.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use nix::unistd::Group;
use tracing::{info, warn};

use crate::{
    error::Error,
    files::{self, FileError, PRIVATE, failed},
    leaf::CertificateFiles,
    server::ServerPki,
};

/// A component's kubeconfig: cluster `local`, context `Default`, user `user`.
#[derive(Debug, Clone, Copy)]
pub struct ComponentKubeconfig<'a> {
    /// The API server's URL.
    pub server: &'a str,
    /// The certificates it is checked by.
    pub certificate_authority: &'a Path,
    /// Who the component is.
    pub client: &'a CertificateFiles,
}

/// The administrator's kubeconfig: cluster, context and user are all called `default`.
#[derive(Debug, Clone, Copy)]
pub struct UserKubeconfig<'a> {
    /// Where it goes (`--write-kubeconfig`).
    pub path: &'a Path,
    /// Where it is looked for: becomes a link if `path` is elsewhere.
    pub default_path: &'a Path,
    /// Its permission bits (`--write-kubeconfig-mode`).
    pub mode: u32,
    /// Its group, by name or number (`--write-kubeconfig-group`).
    pub group: Option<&'a str>,
    /// Where the front is reached from this host.
    pub front: SocketAddr,
}

impl ComponentKubeconfig<'_> {
    /// Writes it, if it differs from what is there.
    ///
    /// # Errors
    /// It cannot be written, or what it embeds cannot be read.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        files::write(path, self.render().as_bytes(), PRIVATE)?;
        Ok(())
    }

    fn render(&self) -> String {
        let file = |path: &Path| path.to_string_lossy().into_owned();
        Kubeconfig {
            cluster: "local",
            context: "Default",
            user: "user",
            server: self.server,
            certificate_authority: ("certificate-authority", file(self.certificate_authority)),
            client_certificate: ("client-certificate", file(&self.client.certificate)),
            client_key: ("client-key", file(&self.client.key)),
        }
        .render()
    }
}

impl UserKubeconfig<'_> {
    /// Writes it, if it differs from what is there, with mode, group and link as asked for.
    ///
    /// A link that cannot be made is only warned about, as in k3s.
    ///
    /// # Errors
    /// It cannot be written, its group is not known here, or what it embeds cannot be read.
    pub fn write(&self, pki: &ServerPki) -> Result<(), Error> {
        let group = self.group.map(group_id).transpose()?;
        let contents = self.render(pki)?;
        if let Some(parent) = self.path.parent() {
            files::create_directory(parent, 0o755)?;
        }
        let written = files::write(self.path, contents.as_bytes(), self.mode)?;
        if let Some(group) = group {
            let found = fs::metadata(self.path).map_err(failed("read", self.path))?;
            if found.gid() != group {
                chown(self.path, None, Some(group)).map_err(failed("set group of", self.path))?;
            }
        }
        if written {
            info!(path = %self.path.display(), "Wrote the kubeconfig.");
        }
        if self.path != self.default_path
            && let Err(error) = self.link()
        {
            warn!(path = %self.default_path.display(), %error, cause = %error.source, "Cannot link the kubeconfig to its default place.");
        }
        Ok(())
    }

    fn link(&self) -> Result<(), FileError> {
        if let Some(parent) = self.default_path.parent() {
            files::create_directory(parent, 0o755)?;
        }
        files::symlink(self.path, self.default_path)?;
        Ok(())
    }

    fn render(&self, pki: &ServerPki) -> Result<String, FileError> {
        let inline =
            |path: &Path| fs::read(path).map(|contents| STANDARD.encode(contents)).map_err(failed("read", path));
        Ok(Kubeconfig {
            cluster: "default",
            context: "default",
            user: "default",
            server: &format!("https://{}", self.front),
            certificate_authority: ("certificate-authority-data", STANDARD.encode(pki.server_ca.bundle())),
            client_certificate: ("client-certificate-data", inline(&pki.client_admin.certificate)?),
            client_key: ("client-key-data", inline(&pki.client_admin.key)?),
        }
        .render())
    }
}

struct Kubeconfig<'a> {
    cluster: &'a str,
    context: &'a str,
    user: &'a str,
    server: &'a str,
    certificate_authority: (&'a str, String),
    client_certificate: (&'a str, String),
    client_key: (&'a str, String),
}

impl Kubeconfig<'_> {
    fn render(&self) -> String {
        let Self { cluster, context, user, .. } = self;
        let server = scalar(self.server);
        let [authority, certificate, key] = [&self.certificate_authority, &self.client_certificate, &self.client_key]
            .map(|(field, value)| format!("{field}: {}", scalar(value)));
        format!(
            "\
apiVersion: v1
clusters:
- cluster:
    {authority}
    server: {server}
  name: {cluster}
contexts:
- context:
    cluster: {cluster}
    user: {user}
  name: {context}
current-context: {context}
kind: Config
users:
- name: {user}
  user:
    {certificate}
    {key}
"
        )
    }
}

/// A YAML scalar: plain where that is safe beyond doubt, else in double quotes, where JSON's escapes hold.
fn scalar(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:".contains(c);
    let begins = |c: char| c.is_ascii_alphabetic() || c == '/';
    if value.starts_with(begins) && value.chars().all(plain) && !value.ends_with(':') {
        value.to_owned()
    } else {
        serde_json::Value::from(value).to_string()
    }
}

fn group_id(group: &str) -> Result<u32, Error> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    match Group::from_name(group) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        _ => Err(Error::UnknownGroup(group.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::server::tests::request;

    fn user<'a>(path: &'a Path, default_path: &'a Path) -> UserKubeconfig<'a> {
        UserKubeconfig { path, default_path, mode: PRIVATE, group: None, front: "127.0.0.1:6443".parse().unwrap() }
    }

    #[test]
    fn a_components_refers_to_its_files() {
        let client = CertificateFiles::at(Path::new("/data/server/tls"), "client-admin");
        let kubeconfig = ComponentKubeconfig {
            server: "https://127.0.0.1:6444",
            certificate_authority: Path::new("/my data/server-ca.crt"),
            client: &client,
        };
        assert_eq!(
            kubeconfig.render(),
            "\
apiVersion: v1
clusters:
- cluster:
    certificate-authority: \"/my data/server-ca.crt\"
    server: https://127.0.0.1:6444
  name: local
contexts:
- context:
    cluster: local
    user: user
  name: Default
current-context: Default
kind: Config
users:
- name: user
  user:
    client-certificate: /data/server/tls/client-admin.crt
    client-key: /data/server/tls/client-admin.key
"
        );
    }

    #[test]
    fn the_users_holds_everything_and_is_linked_from_its_default_place() {
        let dir = tempfile::tempdir().unwrap();
        let pki = ServerPki::ensure(&dir.path().join("server"), &request()).unwrap();
        let (path, default_path) = (dir.path().join("mine/config"), dir.path().join("etc/k3s.yaml"));
        let kubeconfig = user(&path, &default_path);
        kubeconfig.write(&pki).unwrap();
        let text = fs::read_to_string(&default_path).unwrap();
        assert!(text.contains("    server: https://127.0.0.1:6443\n"), "{text}");
        assert!(text.contains("current-context: default\n"));
        assert!(text.contains(&format!("certificate-authority-data: {}\n", STANDARD.encode(pki.server_ca.bundle()))));
        assert_eq!(fs::read_link(&default_path).unwrap(), path);

        let written = fs::metadata(&path).unwrap().modified().unwrap();
        kubeconfig.write(&pki).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);

        user(&default_path, &default_path).write(&pki).unwrap();
        assert!(fs::symlink_metadata(&default_path).unwrap().is_file(), "the link is replaced");
    }

    #[test]
    fn mode_and_group_are_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let pki = ServerPki::ensure(&dir.path().join("server"), &request()).unwrap();
        let path = dir.path().join("k3s.yaml");
        let own_group = fs::metadata(dir.path()).unwrap().gid().to_string();
        let kubeconfig = UserKubeconfig { mode: 0o640, group: Some(&own_group), ..user(&path, &path) };
        kubeconfig.write(&pki).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.permissions().mode() & 0o7777, found.gid().to_string()), (0o640, own_group.clone()));

        let unknown = UserKubeconfig { group: Some("no-such-group"), ..kubeconfig };
        fs::remove_file(&path).unwrap();
        assert!(unknown.write(&pki).unwrap_err().to_string().contains("there is no group \"no-such-group\""));
        assert!(!path.exists(), "the group is looked up before anything is written");
    }

    #[test]
    fn scalars_are_quoted_where_yaml_would_mistake_them() {
        for plain in ["/var/lib/rancher/k3s/server-ca.crt", "https://127.0.0.1:6443", "LS0t+/="] {
            assert_eq!(scalar(plain), plain);
        }
        for quoted in ["https://[::1]:6443", "", "123", "- a", "a b", "a: b", "a #b", "~", "a:", "\"", "*x"] {
            assert_eq!(scalar(quoted), serde_json::to_string(quoted).unwrap());
        }
    }
}
