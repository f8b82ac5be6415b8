//! `<data>/server/tls` and `<data>/server/cred`: what a server's components prove themselves with.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    thread,
    time::SystemTime,
};

use crate::{
    authority::{CertificateAuthority, adopt_legacy},
    error::Error,
    files::{self, PRIVATE},
    key::PrivateKey,
    kubeconfig::ComponentKubeconfig,
    leaf::{CertificateFiles, Lifetime, Profile},
    san::{self, HostName, San},
};

/// What a server is reached by.
#[derive(Debug, Clone)]
pub struct ServerRequest {
    /// Further names and addresses (`--tls-san`).
    pub tls_sans: Vec<San>,
    /// This node.
    pub node_name: HostName,
    /// Its addresses.
    pub node_ips: Vec<IpAddr>,
    /// The address that kube-apiserver publishes, if it is none of those.
    pub advertise_address: Option<IpAddr>,
    /// The `kubernetes` Service: the first address of the primary service range.
    pub service_ip: IpAddr,
    /// The cluster's DNS domain, `cluster.local`.
    pub cluster_domain: HostName,
    /// kube-apiserver's own port on loopback.
    pub apiserver_port: u16,
    /// How long certificates last that are issued from now on.
    pub lifetime: Lifetime,
    /// The time now.
    pub now: SystemTime,
}

/// A server's authorities, certificates, keys and kubeconfigs, all in place.
#[derive(Debug)]
pub struct ServerPki {
    /// Signs every serving certificate; agents' tokens pin it.
    pub server_ca: CertificateAuthority,
    /// Signs every client certificate.
    pub client_ca: CertificateAuthority,
    /// Signs the front's client certificate alone.
    pub request_header_ca: CertificateAuthority,
    /// Signs etcd's certificates for its clients' side.
    pub etcd_server_ca: CertificateAuthority,
    /// Signs etcd's certificates among members.
    pub etcd_peer_ca: CertificateAuthority,

    /// `server-ca.crt` without its chain, for kube-controller-manager's signer.
    pub server_ca_nochain: PathBuf,
    /// `client-ca.crt` without its chain, for kube-controller-manager's signer.
    pub client_ca_nochain: PathBuf,

    /// `system:admin` of `system:masters`: the user's kubeconfig.
    pub client_admin: CertificateFiles,
    /// `system:k3s-supervisor` of `system:masters`: this process.
    pub client_supervisor: CertificateFiles,
    /// kube-controller-manager.
    pub client_controller: CertificateFiles,
    /// kube-scheduler.
    pub client_scheduler: CertificateFiles,
    /// kube-apiserver as a client of kubelets.
    pub client_kube_apiserver: CertificateFiles,
    /// kube-proxy of agents that send no signing request.
    pub client_kube_proxy: CertificateFiles,
    /// The controllers of agents that send no signing request.
    pub client_k3s_controller: CertificateFiles,
    /// The cloud controller.
    pub client_cloud_controller: CertificateFiles,
    /// The front as kube-apiserver's authenticating proxy.
    pub client_auth_proxy: CertificateFiles,
    /// kubelet's key for agents that send no signing request.
    pub client_kubelet_key: PathBuf,
    /// kubelet's serving key for agents that send no signing request.
    pub serving_kubelet_key: PathBuf,

    /// kube-apiserver.
    pub serving_kube_apiserver: CertificateFiles,
    /// kube-controller-manager.
    pub serving_kube_controller_manager: CertificateFiles,
    /// kube-scheduler.
    pub serving_kube_scheduler: CertificateFiles,

    /// kube-apiserver as a client of etcd.
    pub etcd_client: CertificateFiles,
    /// etcd towards its clients.
    pub etcd_server_client: CertificateFiles,
    /// etcd towards other members.
    pub etcd_peer_server_client: CertificateFiles,

    /// Keys that service-account tokens are checked with; the first one signs.
    pub service_key: PathBuf,
    /// The key that signs service-account tokens.
    pub service_current_key: PathBuf,

    /// The components' kubeconfigs.
    pub kubeconfigs: Kubeconfigs,

    apiserver: SocketAddr,
    /// What the front and kube-apiserver are reached by.
    pub(crate) serving_sans: BTreeSet<San>,
    pub(crate) tls: PathBuf,
}

/// `<data>/server/cred/*.kubeconfig`: they reach kube-apiserver itself, on loopback.
#[derive(Debug, Clone)]
pub struct Kubeconfigs {
    /// `system:admin`
    pub admin: PathBuf,
    /// `system:k3s-supervisor`
    pub supervisor: PathBuf,
    /// kube-controller-manager
    pub controller: PathBuf,
    /// kube-scheduler
    pub scheduler: PathBuf,
    /// kube-apiserver
    pub api_server: PathBuf,
    /// The cloud controller
    pub cloud_controller: PathBuf,
}

impl ServerPki {
    /// Adopts what is in `dir` (`<data>/server`), and makes or renews what is missing or no longer fits the request.
    ///
    /// # Errors
    /// A file cannot be read or written, or holds what is no certificate or key; what can be used stays.
    pub fn ensure(dir: &Path, request: &ServerRequest) -> Result<Self, Error> {
        let (tls, cred) = (dir.join("tls"), dir.join("cred"));
        let [etcd, controller_manager, scheduler] =
            ["etcd", "kube-controller-manager", "kube-scheduler"].map(|name| tls.join(name));
        for dir in [dir, &tls, &cred, &etcd, &controller_manager, &scheduler] {
            files::create_directory(dir, 0o700)?;
        }

        let now = request.now;
        let authority = |dir, stem, prefix| {
            let authority = CertificateAuthority::ensure(CertificateFiles::at(dir, stem), prefix, now)?;
            Ok::<_, Error>(authority.with_lifetime(request.lifetime))
        };
        adopt_legacy(&CertificateFiles::at(&tls, "token-ca"), &CertificateFiles::at(&tls, "server-ca"))?;
        let client_ca = authority(&tls, "client-ca", "k3s-client")?;
        let server_ca = authority(&tls, "server-ca", "k3s-server")?;
        let request_header_ca = authority(&tls, "request-header-ca", "k3s-request-header")?;
        let etcd_server_ca = authority(&etcd, "server-ca", "etcd-server")?;
        let etcd_peer_ca = authority(&etcd, "peer-ca", "etcd-peer")?;
        let (service_key, service_current_key) = (tls.join("service.key"), tls.join("service.current.key"));
        // Primes for the RSA key take longer to find than all else together: beside it, a first start does not wait for them.
        thread::scope(|scope| {
            let service_keys = scope.spawn(|| ensure_service_keys(&service_key, &service_current_key));

            let leaf = |authority: &CertificateAuthority, dir: &Path, stem, profile: Profile| {
                let files = CertificateFiles::at(dir, stem);
                files.ensure(&profile, authority, now.into()).map(|()| files)
            };
            let client = |stem, user, group| leaf(&client_ca, &tls, stem, Profile::client(user, group));
            const MASTERS: Option<&str> = Some("system:masters");

            let reached_by = request.sans();
            let serving_sans = &reached_by | &san::kubernetes(&request.cluster_domain);
            let mut etcd_sans = reached_by;
            // k3s' datastore presents etcd's certificate on a socket of this name.
            etcd_sans.insert(HostName::known("kine.sock").into());

            let pki = Self {
                server_ca_nochain: write_nochain(&tls, "server-ca", &server_ca)?,
                client_ca_nochain: write_nochain(&tls, "client-ca", &client_ca)?,

                client_admin: client("client-admin", "system:admin", MASTERS)?,
                client_supervisor: client("client-supervisor", "system:k3s-supervisor", MASTERS)?,
                client_controller: client("client-controller", "system:kube-controller-manager", None)?,
                client_scheduler: client("client-scheduler", "system:kube-scheduler", None)?,
                client_kube_apiserver: client("client-kube-apiserver", "system:apiserver", MASTERS)?,
                client_kube_proxy: client("client-kube-proxy", "system:kube-proxy", None)?,
                client_k3s_controller: client("client-k3s-controller", "system:k3s-controller", None)?,
                client_cloud_controller: client("client-k3s-cloud-controller", "k3s-cloud-controller-manager", None)?,
                client_auth_proxy: leaf(
                    &request_header_ca,
                    &tls,
                    "client-auth-proxy",
                    Profile::client("system:auth-proxy", None),
                )?,
                client_kubelet_key: ensure_key(&tls, "client-kubelet.key")?,
                serving_kubelet_key: ensure_key(&tls, "serving-kubelet.key")?,

                serving_kube_apiserver: leaf(
                    &server_ca,
                    &tls,
                    "serving-kube-apiserver",
                    Profile::server("kube-apiserver", serving_sans.clone()),
                )?,
                serving_kube_controller_manager: leaf(
                    &server_ca,
                    &controller_manager,
                    "kube-controller-manager",
                    Profile::server("kube-controller-manager", san::loopback()),
                )?,
                serving_kube_scheduler: leaf(
                    &server_ca,
                    &scheduler,
                    "kube-scheduler",
                    Profile::server("kube-scheduler", san::loopback()),
                )?,

                etcd_client: leaf(&etcd_server_ca, &etcd, "client", Profile::client("etcd-client", None))?,
                etcd_server_client: leaf(
                    &etcd_server_ca,
                    &etcd,
                    "server-client",
                    Profile::peer("etcd-server", etcd_sans.clone()),
                )?,
                etcd_peer_server_client: leaf(
                    &etcd_peer_ca,
                    &etcd,
                    "peer-server-client",
                    Profile::peer("etcd-peer", etcd_sans),
                )?,

                service_key: service_key.clone(),
                service_current_key: service_current_key.clone(),
                kubeconfigs: Kubeconfigs::at(&cred),
                server_ca,
                client_ca,
                request_header_ca,
                etcd_server_ca,
                etcd_peer_ca,
                apiserver: request.apiserver(),
                serving_sans,
                tls,
            };
            pki.write_kubeconfigs()?;
            service_keys.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok(pki)
        })
    }

    /// kube-apiserver on loopback, where the components of this machine reach it.
    pub fn apiserver_url(&self) -> String {
        format!("https://{}", self.apiserver)
    }

    /// Every name and address by which clients know this server, and by which pods know the API.
    pub fn serving_sans(&self) -> &BTreeSet<San> {
        &self.serving_sans
    }

    fn write_kubeconfigs(&self) -> Result<(), Error> {
        let server = self.apiserver_url();
        for (path, client) in [
            (&self.kubeconfigs.admin, &self.client_admin),
            (&self.kubeconfigs.supervisor, &self.client_supervisor),
            (&self.kubeconfigs.controller, &self.client_controller),
            (&self.kubeconfigs.scheduler, &self.client_scheduler),
            (&self.kubeconfigs.api_server, &self.client_kube_apiserver),
            (&self.kubeconfigs.cloud_controller, &self.client_cloud_controller),
        ] {
            let certificate_authority = &self.server_ca.files().certificate;
            ComponentKubeconfig { server: &server, certificate_authority, client }.write(path)?;
        }
        Ok(())
    }
}

#[cfg(any(test, feature = "testing"))]
impl ServerRequest {
    /// For tests: of a server called `server` at 192.0.2.1, with the addresses of a cluster that was configured by nobody.
    pub fn example(now: SystemTime) -> Self {
        Self {
            tls_sans: Vec::new(),
            node_name: "server".parse().expect("this is a name"),
            node_ips: vec![[192, 0, 2, 1].into()],
            advertise_address: None,
            service_ip: [10, 43, 0, 1].into(),
            cluster_domain: "cluster.local".parse().expect("this is a name"),
            apiserver_port: 6444,
            lifetime: Lifetime::default(),
            now,
        }
    }
}

impl ServerRequest {
    /// Loopback in the family of the service range: a cluster of IPv6 alone may have no 127.0.0.1.
    fn apiserver(&self) -> SocketAddr {
        let loopback = match self.service_ip {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
        };
        SocketAddr::new(loopback, self.apiserver_port)
    }

    fn sans(&self) -> BTreeSet<San> {
        let mut sans = san::loopback();
        sans.extend(self.tls_sans.iter().cloned());
        sans.insert(self.node_name.clone().into());
        sans.extend(self.node_ips.iter().chain(&self.advertise_address).copied().map(San::from));
        sans.insert(self.service_ip.into());
        sans
    }
}

impl Kubeconfigs {
    fn at(cred: &Path) -> Self {
        Self {
            admin: cred.join("admin.kubeconfig"),
            supervisor: cred.join("supervisor.kubeconfig"),
            controller: cred.join("controller.kubeconfig"),
            scheduler: cred.join("scheduler.kubeconfig"),
            api_server: cred.join("api-server.kubeconfig"),
            cloud_controller: cred.join("cloud-controller.kubeconfig"),
        }
    }
}

/// Keys of earlier rotations follow the first in `service.key`; only the first may sign, so it gets a file of its own.
fn ensure_service_keys(path: &Path, current: &Path) -> Result<(), Error> {
    let signing = match PrivateKey::load(path)? {
        Some(key) => key,
        None => {
            let key = PrivateKey::generate_rsa()?;
            files::write(path, key.pem().as_bytes(), PRIVATE)?;
            key
        }
    };
    files::write(current, signing.pem().as_bytes(), PRIVATE)?;
    Ok(())
}

fn write_nochain(tls: &Path, stem: &str, authority: &CertificateAuthority) -> Result<PathBuf, Error> {
    let path = tls.join(format!("{stem}.nochain.crt"));
    files::write(&path, authority.signing_certificate().as_bytes(), PRIVATE)?;
    Ok(path)
}

fn ensure_key(tls: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = tls.join(name);
    PrivateKey::load_or_generate(&path)?;
    Ok(path)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, process::Command, time::Duration};

    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    };

    use super::*;
    use crate::certificate::Certificate;

    pub(crate) fn request() -> ServerRequest {
        ServerRequest {
            tls_sans: vec!["edge.example.com".parse().unwrap()],
            node_name: "edge-1".parse().unwrap(),
            node_ips: vec![[192, 0, 2, 10].into()],
            ..ServerRequest::example(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000))
        }
    }

    /// Every file below `dir` by its relative path, with its contents and modification time.
    /// Contents and time of every file.
    type Snapshot = BTreeMap<PathBuf, (Vec<u8>, SystemTime)>;

    /// The files that are not as they were.
    fn changed(dir: &Path, before: &Snapshot) -> Vec<String> {
        let after = snapshot(dir);
        let changed = after.iter().filter(|(path, file)| before[*path] != **file);
        changed.map(|(path, _)| path.to_str().unwrap().to_owned()).collect()
    }

    fn snapshot(dir: &Path) -> Snapshot {
        let (mut files, mut dirs) = (BTreeMap::new(), vec![dir.to_owned()]);
        while let Some(next) = dirs.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    let modified = fs::metadata(&path).unwrap().modified().unwrap();
                    files.insert(path.strip_prefix(dir).unwrap().to_owned(), (fs::read(&path).unwrap(), modified));
                }
            }
        }
        files
    }

    #[test]
    fn the_files_are_k3s_own() {
        let dir = tempfile::tempdir().unwrap();
        ServerPki::ensure(dir.path(), &request()).unwrap();
        let found: Vec<String> = snapshot(dir.path()).keys().map(|path| path.to_str().unwrap().to_owned()).collect();
        let pairs = [
            "client-admin",
            "client-auth-proxy",
            "client-ca",
            "client-controller",
            "client-k3s-cloud-controller",
            "client-k3s-controller",
            "client-kube-apiserver",
            "client-kube-proxy",
            "client-scheduler",
            "client-supervisor",
            "etcd/client",
            "etcd/peer-ca",
            "etcd/peer-server-client",
            "etcd/server-ca",
            "etcd/server-client",
            "kube-controller-manager/kube-controller-manager",
            "kube-scheduler/kube-scheduler",
            "request-header-ca",
            "server-ca",
            "serving-kube-apiserver",
        ];
        let single = [
            "cred/admin.kubeconfig",
            "cred/api-server.kubeconfig",
            "cred/cloud-controller.kubeconfig",
            "cred/controller.kubeconfig",
            "cred/scheduler.kubeconfig",
            "cred/supervisor.kubeconfig",
            "tls/client-ca.nochain.crt",
            "tls/client-kubelet.key",
            "tls/server-ca.nochain.crt",
            "tls/service.current.key",
            "tls/service.key",
            "tls/serving-kubelet.key",
        ];
        let pairs = pairs.iter().flat_map(|stem| [format!("tls/{stem}.crt"), format!("tls/{stem}.key")]);
        let mut expected: Vec<String> = pairs.chain(single.map(str::to_owned)).collect();
        expected.sort();
        let mut found = found;
        found.sort();
        assert_eq!(found, expected);

        for (path, (contents, _)) in snapshot(dir.path()) {
            let path = dir.path().join(path);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600, "{}", path.display());
            let directory = fs::metadata(path.parent().unwrap()).unwrap();
            assert_eq!(directory.permissions().mode() & 0o7777, 0o700, "{}", path.display());
            if path.extension().unwrap() == "key" {
                let rsa = path.file_name().unwrap().to_str().unwrap().starts_with("service.");
                let label: &[u8] = if rsa { b"-----BEGIN RSA PRIVATE" } else { b"-----BEGIN EC PRIVATE" };
                assert!(contents.starts_with(label), "{}", path.display());
            }
        }
    }

    #[test]
    fn the_second_start_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        ServerPki::ensure(dir.path(), &request()).unwrap();
        let first = snapshot(dir.path());
        ServerPki::ensure(dir.path(), &request()).unwrap();
        assert_eq!(snapshot(dir.path()), first);
    }

    #[test]
    fn the_apiserver_answers_to_all_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let pki = ServerPki::ensure(dir.path(), &request()).unwrap();
        let certificate = Certificate::first_of(&fs::read(pki.serving_kube_apiserver.certificate).unwrap()).unwrap();
        let names: Vec<String> = certificate.sans.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "edge-1",
                "edge.example.com",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                "localhost",
                "10.43.0.1",
                "127.0.0.1",
                "192.0.2.10",
                "::1",
            ]
        );
    }

    #[test]
    fn a_new_address_renews_only_what_names_it_and_keeps_the_keys() {
        let dir = tempfile::tempdir().unwrap();
        ServerPki::ensure(dir.path(), &request()).unwrap();
        let before = snapshot(dir.path());
        let moved = ServerRequest { node_ips: vec![[192, 0, 2, 11].into()], ..request() };
        ServerPki::ensure(dir.path(), &moved).unwrap();
        assert_eq!(
            changed(dir.path(), &before),
            ["tls/etcd/peer-server-client.crt", "tls/etcd/server-client.crt", "tls/serving-kube-apiserver.crt"]
        );
    }

    #[test]
    fn after_nine_months_off_every_leaf_is_renewed_and_no_authority() {
        let dir = tempfile::tempdir().unwrap();
        ServerPki::ensure(dir.path(), &request()).unwrap();
        let before = snapshot(dir.path());
        let later = request().now + Duration::from_secs(270 * 86_400);
        ServerPki::ensure(dir.path(), &ServerRequest { now: later, ..request() }).unwrap();
        for (path, file) in snapshot(dir.path()) {
            let name = path.to_str().unwrap();
            let leaf = name.ends_with(".crt") && !name.contains("-ca.");
            assert_eq!(before[&path] != file, leaf, "{name}");
        }
    }

    #[test]
    fn rotated_service_account_keys_stay_and_the_first_signs() {
        let dir = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        fs::create_dir(&tls).unwrap();
        let (new, old) = (PrivateKey::generate_rsa().unwrap(), PrivateKey::generate_rsa().unwrap());
        let both = new.pem() + &old.pem();
        fs::write(tls.join("service.key"), &both).unwrap();
        ServerPki::ensure(dir.path(), &request()).unwrap();
        assert_eq!(fs::read_to_string(tls.join("service.key")).unwrap(), both);
        assert_eq!(fs::read_to_string(tls.join("service.current.key")).unwrap(), new.pem());
    }

    #[test]
    fn an_authority_that_leads_elsewhere_by_now_has_its_certificates_issued_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut pki = ServerPki::ensure(dir.path(), &request()).unwrap();
        let front = pki.front_certificate(&[], request().now).unwrap();
        let (root, below) = (KeyPair::generate().unwrap(), pki.server_ca.bundle().to_vec());
        let root = CertificateParams::default().self_signed(&root).unwrap().pem();
        fs::write(dir.path().join("tls/server-ca.crt"), [below, root.into_bytes()].concat()).unwrap();

        let before = snapshot(dir.path());
        pki = ServerPki::ensure(dir.path(), &request()).unwrap();
        assert_eq!(
            changed(dir.path(), &before),
            [
                "tls/kube-controller-manager/kube-controller-manager.crt",
                "tls/kube-scheduler/kube-scheduler.crt",
                "tls/serving-kube-apiserver.crt"
            ]
        );
        assert_eq!(pki.front_certificate(&[], request().now).unwrap().chain().len(), front.chain().len() + 1);
    }

    #[test]
    fn an_ipv6_cluster_has_an_ipv6_loopback() {
        let request = ServerRequest { service_ip: "fd00:43::1".parse().unwrap(), ..request() };
        assert_eq!(request.apiserver().to_string(), "[::1]:6444");
    }

    /// An authority and its leaves in the shape that k3s gives them: SEC 1 keys, serial 0, the chain after each leaf.
    struct K3s {
        authority: CertificateParams,
        key: KeyPair,
        pem: String,
    }

    impl K3s {
        fn authority(tls: &Path, stem: &str, prefix: &str) -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, format!("{prefix}-ca@1790000000"));
            params.serial_number = Some(0.into());
            params.not_before = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(1_790_000_000)).unwrap().into();
            params.not_after = params.not_before + time::Duration::days(3650);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages =
                vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
            let pem = params.self_signed(&key).unwrap().pem();
            fs::write(tls.join(format!("{stem}.crt")), &pem).unwrap();
            fs::write(tls.join(format!("{stem}.key")), sec1(&key)).unwrap();
            Self { authority: params, key, pem }
        }

        fn client(&self, tls: &Path, stem: &str, user: &str, group: Option<&str>) {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            if let Some(group) = group {
                params.distinguished_name.push(DnType::OrganizationName, group);
            }
            params.distinguished_name.push(DnType::CommonName, user);
            params.not_before = self.authority.not_before;
            params.not_after = params.not_before + time::Duration::days(365);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.use_authority_key_identifier_extension = true;
            let leaf = params.signed_by(&key, &Issuer::from_params(&self.authority, &self.key)).unwrap();
            fs::write(tls.join(format!("{stem}.crt")), leaf.pem() + &self.pem).unwrap();
            fs::write(tls.join(format!("{stem}.key")), sec1(&key)).unwrap();
        }
    }

    /// rcgen knows PKCS #8 only: the SEC 1 key is the OCTET STRING inside.
    fn sec1(key: &KeyPair) -> String {
        let pkcs8 = key.serialize_der();
        let sec1 = yasna::parse_der(&pkcs8, |reader| {
            reader.read_sequence(|fields| {
                fields.next().read_u8()?;
                fields.next().read_der()?;
                fields.next().read_bytes()
            })
        });
        crate::pem::encode("EC PRIVATE KEY", &sec1.unwrap())
    }

    #[test]
    fn a_directory_that_k3s_wrote_is_adopted_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        fs::create_dir_all(tls.join("etcd")).unwrap();
        let client_ca = K3s::authority(&tls, "client-ca", "k3s-client");
        client_ca.client(&tls, "client-admin", "system:admin", Some("system:masters"));
        client_ca.client(&tls, "client-controller", "system:kube-controller-manager", None);
        K3s::authority(&tls, "server-ca", "k3s-server");
        K3s::authority(&tls, "request-header-ca", "k3s-request-header");
        K3s::authority(&tls.join("etcd"), "server-ca", "etcd-server");
        K3s::authority(&tls.join("etcd"), "peer-ca", "etcd-peer");
        fs::write(tls.join("service.key"), PrivateKey::generate_rsa().unwrap().pem()).unwrap();

        let before = snapshot(dir.path());
        ServerPki::ensure(dir.path(), &request()).unwrap();
        let after = snapshot(dir.path());
        for (path, file) in before {
            assert_eq!(after[&path], file, "{}", path.display());
        }
    }

    #[test]
    fn openssl_verifies_what_is_issued() {
        if Command::new("openssl").arg("version").output().is_err() {
            eprintln!("openssl is not installed: skipped");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let pki = ServerPki::ensure(dir.path(), &request()).unwrap();
        for (authority, purpose, leaf) in [
            (&pki.server_ca, "sslserver", &pki.serving_kube_apiserver),
            (&pki.client_ca, "sslclient", &pki.client_admin),
            (&pki.etcd_peer_ca, "sslserver", &pki.etcd_peer_server_client),
            (&pki.etcd_peer_ca, "sslclient", &pki.etcd_peer_server_client),
        ] {
            let checked = Command::new("openssl")
                .args(["verify", "-x509_strict", "-attime", "1800000000", "-purpose", purpose, "-CAfile"])
                .args([&authority.files().certificate, &leaf.certificate])
                .output()
                .unwrap();
            assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        }
    }
}
