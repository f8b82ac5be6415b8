//! An edge machine: what it is by now, and how a first-boot file changes that.
//!
//! ```text
//!  no file, no role ──▶ Waiting          nothing runs until there is a file
//!  a right file ──────▶ Taken ──────▶ Settled at each later start
//!  a wrong file ──────▶ refused: what the machine was before, it stays
//! ```
//! Files of the data partition are written before the file leaves the ESP: a power cut in between has it taken once more.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use k3s_config::{Environment, Role};
use k3s_files::{FileError, PRIVATE};

use crate::{
    Assessment, BootEntry, Esp, FirstBoot, NotAVersion, SlotsError, TRIES, Version, Writer, Wrong,
    config_section::ConfigSection, data_fault::DataFault, last_update::Stage, network::Interface, outcome::Outcome,
};

/// What IMAGE_ID of os-release(5) is in our images.
const IMAGE_ID: &str = "k3s";
/// There while the node is cordoned for a restart.
const CORDONED: &str = "cordoned";

/// The places of a machine.
#[derive(Debug)]
pub struct Machine {
    root: PathBuf,
    esp: Esp,
}

/// What a start finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Configured {
    /// There is no first-boot file, and never was one.
    Waiting,
    /// The first-boot file was taken.
    Taken(Role, String),
    /// It was taken at an earlier start.
    Settled(Role),
    /// It was kept on the ESP, for a data partition that had to be replaced.
    TakenAgain(Role, String),
}

/// Why a machine is not configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This is some other system.
    #[error("this system is no edge image, and has no first-boot file: configure it by /etc/rancher/k3s/config.yaml")]
    OtherSystem,
    /// The first-boot file does not say what it has to. Nothing has changed.
    #[error(transparent)]
    Wrong(#[from] Wrong),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The node's password cannot be drawn or kept.
    #[error(transparent)]
    Identity(#[from] k3s_identity::Error),
    /// The disk is not that of an edge image.
    #[error(transparent)]
    Slots(#[from] SlotsError),
    /// There is nothing else to start.
    #[error("there is no version of before: the other slot is empty or bad")]
    NoWayBack,
    /// The version of before would stand before data that it does not know.
    #[error("the cluster's data was written by {} ({written}), and {} ({before}) cannot read it; --with-data brings back the snapshot of before the update, without what was written since", written.version, before.version)]
    Unreadable {
        /// What has written it.
        written: Writer,
        /// What was to read it.
        before: Writer,
    },
    /// There is no data of before.
    #[error("no snapshot was taken before the update from {0}: leave out --with-data")]
    NoSnapshot(Version),
    /// The image says no version of itself that could be ordered.
    #[error("IMAGE_VERSION in /usr/lib/os-release: {0}")]
    Version(#[from] NotAVersion),
}

impl Machine {
    /// The one whose root is here, with its ESP mounted at `/efi`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self { esp: Esp::at(root.join("efi")), root }
    }

    /// Takes the first-boot file if there is one, and says on the ESP what came of it. `environment` is that of this process.
    ///
    /// # Errors
    /// This is no edge machine, the file is wrong, or something cannot be read or written.
    pub fn configure(&self, environment: &Environment) -> Result<Configured, Error> {
        self.require_edge_image()?;
        let fault = self.take_data_fault()?;
        let configured = self.take(environment);
        let fault = fault.map(DataFault::sentence);
        let said = match &configured {
            Ok(Configured::Settled(_)) => fault.map(str::to_owned),
            Ok(configured) => {
                Some(format!("{}{}", fault.map(|fault| format!("{fault} ")).unwrap_or_default(), configured.sentence()))
            }
            Err(Error::Wrong(wrong)) => {
                Some(format!("{wrong}. Nothing was changed; correct it and start the machine again."))
            }
            Err(error) => Some(format!("{error}.")),
        };
        match (said.map_or(Ok(()), |sentence| self.esp.say(&sentence)), configured) {
            // That the machine is not configured weighs more.
            (_, Err(error)) => Err(error),
            (said, Ok(configured)) => said.map(|()| configured).map_err(Error::File),
        }
    }

    /// Which version runs.
    ///
    /// # Errors
    /// This is no edge machine.
    pub fn version(&self) -> Result<Version, Error> {
        self.require_edge_image()?;
        Ok(self.release("IMAGE_VERSION")?.unwrap_or_default().parse()?)
    }

    /// How the running version stands.
    ///
    /// # Errors
    /// This is no edge machine, or its ESP cannot be read.
    pub fn assessment(&self) -> Result<Assessment, Error> {
        // Without a kernel of it there is nothing to be counted.
        Ok(self.running_entry()?.map_or(Assessment::Good, |entry| entry.assessment))
    }

    /// Keeps that the running version has shown that it is good. The boot loader learns it from systemd-bless-boot.
    ///
    /// # Errors
    /// This is no edge machine, or the data partition is not writable.
    pub fn accept(&self) -> Result<(), Error> {
        Outcome::good(&self.version()?).write(self)?;
        self.set_stage(Stage::Good)
    }

    /// Has the running version, which is on trial, not be started again while there is another one.
    ///
    /// # Errors
    /// This is no edge machine, or the ESP is not writable.
    pub fn give_up(&self, reason: &str) -> Result<(), Error> {
        if let Some(entry) = self.running_entry()?
            && let Assessment::OnTrial { done, .. } = entry.assessment
        {
            self.esp.assess(&entry, Assessment::Bad { done })?;
        }
        // Why is worth less than that.
        Outcome::failed(&self.version()?, reason).write(self)
    }

    /// Has the next start be of the version of before, which is tried again as a new one is. The running one is not started again while there is
    /// that one. The cluster's data stays, or is that of before the update again, `with_data`.
    ///
    /// # Errors
    /// There is no version of before, or none that could be started or could read the data, or the ESP is not writable.
    pub fn roll_back(&self, with_data: bool) -> Result<Version, Error> {
        let running = self.version()?;
        let entries = self.esp.entries()?;
        let other = entries.iter().filter(|entry| entry.version != running).max_by_key(|entry| &entry.version);
        let other = other.filter(|entry| !entry.assessment.is_bad()).ok_or(Error::NoWayBack)?;
        self.prepare_data(&other.version, with_data)?;
        self.esp.assess(other, Assessment::OnTrial { left: TRIES, done: 0 })?;
        if let Some(entry) = entries.iter().find(|entry| entry.version == running) {
            self.esp.assess(entry, Assessment::Bad { done: entry.assessment.done() })?;
        }
        Outcome::failed(&running, format!("rolled back to {}", other.version)).write(self)?;
        Ok(other.version.clone())
    }

    /// Nothing has changed if it fails.
    fn prepare_data(&self, to: &Version, with_data: bool) -> Result<(), Error> {
        let update = self.last_update()?.filter(|update| update.from == *to);
        if with_data {
            return match update {
                Some(update) if update.snapshot.is_some() => self.set_stage(Stage::Leaving),
                _ => Err(Error::NoSnapshot(to.clone())),
            };
        }
        let leaving = update.as_ref().is_some_and(|update| update.stage == Stage::Leaving);
        // One on trial comes back with its data by itself.
        let stays = update.filter(|update| update.stage != Stage::Trial);
        if let (Some(before), Some(written)) = (stays.and_then(|update| update.before), self.writer()?)
            && !before.reads(&written)
        {
            return Err(Error::Unreadable { written, before });
        }
        // What an earlier call has wanted.
        if leaving { self.set_stage(Stage::Good) } else { Ok(()) }
    }

    /// Whether its node was cordoned for a restart, and is to take pods again.
    pub fn is_cordoned(&self) -> bool {
        self.own(CORDONED).exists()
    }

    /// Keeps that it was, or no longer is.
    ///
    /// # Errors
    /// The data partition is full or not writable.
    pub fn set_cordoned(&self, cordoned: bool) -> Result<(), FileError> {
        let path = self.own(CORDONED);
        if cordoned { k3s_files::write(&path, b"", 0o644) } else { k3s_files::remove(&path) }.map(|_| ())
    }

    pub(crate) fn running_entry(&self) -> Result<Option<BootEntry>, Error> {
        let version = self.version()?;
        Ok(self.esp.entries()?.into_iter().find(|entry| entry.version == version))
    }

    /// The name that the first-boot file gave, or the one that was made of the machine's identity.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn hostname(&self) -> Result<String, FileError> {
        let name = k3s_files::read_existing(&self.own("hostname"))?;
        Ok(String::from_utf8_lossy(&name).trim().to_owned())
    }

    fn take(&self, environment: &Environment) -> Result<Configured, Error> {
        let role = self.role();
        let Some(bytes) = self.esp.first_boot()? else {
            return match role {
                Some(role) => Ok(Configured::Settled(role)),
                None => self.take_kept_identity(environment),
            };
        };
        // The power was cut while it was erased.
        if let Some(role) = role
            && k3s_files::is_torn(&bytes)
        {
            self.esp.erase_first_boot()?;
            return Ok(Configured::Settled(role));
        }
        let wanted = FirstBoot::parse(&bytes)?;
        self.check(&wanted, role, environment)?;
        self.write(&wanted)?;
        if wanted.keep_identity {
            self.keep_identity(&bytes)?;
        } else {
            self.esp.erase_identity()?;
        }
        self.esp.erase_first_boot()?;
        Ok(Configured::Taken(wanted.role, self.hostname()?))
    }

    /// By the same code that will read it.
    pub(crate) fn check(&self, wanted: &FirstBoot, role: Option<Role>, environment: &Environment) -> Result<(), Error> {
        if let Some(role) = role.filter(|role| *role != wanted.role)
            && self.root.join("var/lib/rancher/k3s").exists()
        {
            let (is, not) = (role.verb(), wanted.role.verb());
            return Err(Wrong::whole(format!(
                "this machine has the role {is} and data of it, and does not become {not}; write `role: {is}`, or flash the machine anew"
            ))
            .into());
        }
        let folder = self.root.join("run/k3s-os");
        k3s_files::create_directory(&folder, 0o700)?;
        let candidate = folder.join(FirstBoot::NAME);
        k3s_files::write(&candidate, wanted.config.in_place().as_bytes(), PRIVATE)?;
        let hostname = wanted.hostname.clone().map_or_else(|| self.hostname(), Ok)?;
        let environment = Environment { hostname, config_file: candidate.clone(), ..environment.clone() };
        let checked = check_config(wanted.role, &environment);
        k3s_files::remove(&candidate)?;
        checked.map_err(|error| of_config(&error, &candidate).into())
    }

    /// The role comes last: without it nothing runs.
    pub(crate) fn write(&self, wanted: &FirstBoot) -> Result<(), FileError> {
        self.write_network(&wanted.network)?;
        if let Some(hostname) = &wanted.hostname {
            k3s_files::write(&self.own("hostname"), format!("{hostname}\n").as_bytes(), 0o644)?;
        }
        self.write_config(&wanted.config)?;
        for role in Role::ALL.into_iter().filter(|role| *role != wanted.role) {
            k3s_files::remove(&self.own(role_file(role)))?;
        }
        k3s_files::write(&self.own(role_file(wanted.role)), b"", 0o644)?;
        Ok(())
    }

    /// What an earlier file said of interfaces goes.
    fn write_network(&self, interfaces: &[Interface]) -> Result<(), FileError> {
        let folder = self.own("network");
        k3s_files::create_directory(&folder, 0o755)?;
        let name = |number: usize| format!("10-first-boot-{number}.network");
        for (number, interface) in interfaces.iter().enumerate() {
            k3s_files::write(&folder.join(name(number)), interface.network_file().as_bytes(), 0o644)?;
        }
        let mut number = interfaces.len();
        while k3s_files::remove(&folder.join(name(number)))? {
            number += 1;
        }
        Ok(())
    }

    fn write_config(&self, config: &ConfigSection) -> Result<(), FileError> {
        let path = self.root.join("var/lib/rancher/etc/k3s/config.yaml");
        k3s_files::create_directory(path.parent().expect("it is in a folder"), 0o755)?;
        k3s_files::write(&path, config.text().as_bytes(), PRIVATE)?;
        Ok(())
    }

    /// What the first-boot file made of it.
    pub fn role(&self) -> Option<Role> {
        Role::ALL.into_iter().find(|role| self.own(role_file(*role)).exists())
    }

    /// A file of the machine's own, on the data partition.
    pub(crate) fn own(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join("var/lib/k3s-os").join(name)
    }

    /// Where everything of it is below.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Its ESP.
    pub(crate) fn esp(&self) -> &Esp {
        &self.esp
    }

    fn require_edge_image(&self) -> Result<(), Error> {
        match self.release("IMAGE_ID")?.as_deref() {
            Some(IMAGE_ID) => Ok(()),
            _ => Err(Error::OtherSystem),
        }
    }

    /// What os-release(5) says of the running system.
    fn release(&self, key: &str) -> Result<Option<String>, Error> {
        let path = self.root.join("usr/lib/os-release");
        let release = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            release => release.map_err(k3s_files::failed("read", &path))?,
        };
        let value = |line: &str| Some(line.strip_prefix(key)?.strip_prefix('=')?.trim_matches('"').to_owned());
        Ok(release.lines().find_map(value))
    }
}

impl Configured {
    /// For the console and for the ESP.
    pub fn sentence(&self) -> String {
        match self {
            Self::Waiting => format!(
                "There is no {0}, so nothing runs: put one on this partition and start the machine again.",
                FirstBoot::NAME
            ),
            Self::Taken(role, hostname) => {
                format!("{} was taken: this machine is {hostname}, role {}.", FirstBoot::NAME, role.verb())
            }
            Self::TakenAgain(role, hostname) => {
                format!(
                    "{} was taken as the ESP has kept it: this machine is {hostname}, role {}, with the identity that it had.",
                    FirstBoot::NAME,
                    role.verb()
                )
            }
            Self::Settled(role) => format!("{} was taken at an earlier start: role {}.", FirstBoot::NAME, role.verb()),
        }
    }
}

/// Named in `ConditionPathExists=` of the unit that runs.
fn role_file(role: Role) -> &'static str {
    match role {
        Role::Server => "role.server",
        Role::Agent => "role.agent",
    }
}

fn check_config(role: Role, environment: &Environment) -> Result<(), k3s_config::Error> {
    let warnings = match role {
        Role::Server => k3s_config::parse_server([], environment)?.1,
        Role::Agent => k3s_config::parse_agent([], environment)?.1,
    };
    Ok(k3s_config::check(&warnings)?)
}

/// What is said of the file that was checked holds for the one that the user knows.
fn of_config(error: &k3s_config::Error, candidate: &Path) -> Wrong {
    let sentence = error.to_string();
    let place = format!("{} line ", candidate.display());
    let in_line = sentence.strip_prefix(&place).and_then(|rest| {
        let (line, reason) = rest.split_once([':', ','])?;
        Some(Wrong { line: Some(line.parse().ok()?), reason: reason.trim_start().to_owned() })
    });
    in_line.unwrap_or_else(|| Wrong::whole(format!("config: {sentence}")))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{collections::HashMap, fs::read_to_string};

    use super::*;

    const FILE: &str = "hostname: kiosk-7\nrole: agent\nnetwork:\n- match: {name: eth0}\n- match: {name: eth1}\nconfig:\n  server: https://10.0.0.1:6443\n  token: secret\n";

    pub(crate) struct Host(tempfile::TempDir);

    impl Host {
        /// As the initrd leaves it at the first start.
        pub(crate) fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            host.write("usr/lib/os-release", "ID=debian\nIMAGE_ID=k3s\n");
            host.write("var/lib/k3s-os/hostname", "k3s-0123abcd\n");
            host.write("var/lib/k3s-os/machine-id", "0123abcd\n");
            fs::create_dir_all(host.path("var/lib/rancher/etc")).unwrap();
            fs::create_dir_all(host.path("efi")).unwrap();
            host
        }

        pub(crate) fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        pub(crate) fn write(&self, name: &str, text: &str) {
            fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
            fs::write(self.path(name), text).unwrap();
        }

        pub(crate) fn read(&self, name: &str) -> Option<String> {
            read_to_string(self.path(name)).ok()
        }

        pub(crate) fn configure(&self) -> Result<Configured, Error> {
            let environment = Environment {
                variables: HashMap::new(),
                hostname: "before".into(),
                directory: "/".into(),
                config_file: "/nonexistent".into(),
            };
            Machine::at(self.0.path()).configure(&environment)
        }

        /// As the initrd leaves it when it had to make a fresh data partition.
        pub(crate) fn replace_data(&self) {
            fs::remove_dir_all(self.path("var")).unwrap();
            self.write("var/lib/k3s-os/hostname", "k3s-0123abcd\n");
            self.write("var/lib/k3s-os/data-fault", "replaced\n");
            fs::create_dir_all(self.path("var/lib/rancher/etc")).unwrap();
        }

        /// A first-boot file, and what is said of it.
        pub(crate) fn given(&self, file: &str) -> String {
            self.write("efi/first-boot.yaml", file);
            let _ = self.configure();
            self.read("efi/status.txt").unwrap().trim_end().to_owned()
        }
    }

    #[test]
    fn a_right_file_is_taken_once_and_leaves_no_secret_on_the_esp() {
        let host = Host::new();
        assert_eq!(host.given(FILE), "first-boot.yaml was taken: this machine is kiosk-7, role agent.");
        assert_eq!(host.read("efi/first-boot.yaml"), None);
        assert_eq!(host.read("var/lib/k3s-os/hostname").as_deref(), Some("kiosk-7\n"));
        assert!(host.path("var/lib/k3s-os/role.agent").exists());
        assert_eq!(
            host.read("var/lib/rancher/etc/k3s/config.yaml").as_deref(),
            Some("server: https://10.0.0.1:6443\ntoken: secret\n")
        );
        assert!(host.read("var/lib/k3s-os/network/10-first-boot-1.network").unwrap().contains("Name=eth1"));
        assert_eq!(fs::read_dir(host.path("run/k3s-os")).unwrap().count(), 0, "the candidate is gone");
        assert_eq!(host.configure().unwrap(), Configured::Settled(Role::Agent));
        assert_eq!(
            host.read("efi/status.txt").unwrap().trim_end(),
            "first-boot.yaml was taken: this machine is kiosk-7, role agent."
        );
    }

    #[test]
    fn without_a_file_a_machine_waits_for_one() {
        let host = Host::new();
        assert_eq!(host.configure().unwrap(), Configured::Waiting);
        assert!(host.read("efi/status.txt").unwrap().starts_with("There is no first-boot.yaml, so nothing runs"));
    }

    #[test]
    fn a_wrong_file_is_named_and_changes_nothing() {
        let host = Host::new();
        host.given(FILE);
        let before = host.read("var/lib/rancher/etc/k3s/config.yaml");
        for (file, expected) in [
            (
                "role: server\nconfig:\n  # of k3s\n  disble: traefik\n",
                "first-boot.yaml line 4: `disble` is not a key; use disable if that is meant",
            ),
            ("role: server\nconfig:\n  https-listen-port: x\n", "first-boot.yaml line 3: https-listen-port: "),
            ("role: server\nconfig:\n  kubelet-arg:\n    a: b\n", "first-boot.yaml line 4: a value is a mapping; "),
            ("role: agent\n", "first-boot.yaml: config: "),
            ("role: sever\n", "first-boot.yaml line 1: `sever` is no role; "),
        ] {
            let said = host.given(file);
            assert!(said.starts_with(expected), "{file:?}: {said}");
            assert!(said.ends_with(". Nothing was changed; correct it and start the machine again."), "{said}");
            assert!(!said.contains("run/k3s-os") && !said.contains('\n'), "{said}");
            assert_eq!(host.read("efi/first-boot.yaml").as_deref(), Some(file), "it stays to be corrected");
        }
        assert_eq!(host.read("var/lib/rancher/etc/k3s/config.yaml"), before);
        assert_eq!(host.read("var/lib/k3s-os/hostname").as_deref(), Some("kiosk-7\n"));
    }

    #[test]
    fn a_later_file_replaces_what_the_first_said() {
        let host = Host::new();
        host.given(FILE);
        host.given("role: server\nnetwork:\n- match: {name: eth9}\n");
        assert_eq!(host.read("var/lib/k3s-os/hostname").as_deref(), Some("kiosk-7\n"), "what is not said stays");
        assert!(host.path("var/lib/k3s-os/role.server").exists() && !host.path("var/lib/k3s-os/role.agent").exists());
        assert!(host.read("var/lib/k3s-os/network/10-first-boot-0.network").unwrap().contains("Name=eth9"));
        assert_eq!(host.read("var/lib/k3s-os/network/10-first-boot-1.network"), None);
        assert_eq!(host.read("var/lib/rancher/etc/k3s/config.yaml").as_deref(), Some(""));
    }

    #[test]
    fn a_machine_with_data_keeps_its_role() {
        let host = Host::new();
        host.given(FILE);
        fs::create_dir_all(host.path("var/lib/rancher/k3s")).unwrap();
        assert!(
            host.given("role: server\n").starts_with("first-boot.yaml: this machine has the role agent and data of it")
        );
        assert!(host.given(FILE).contains("was taken"));
    }

    #[test]
    fn a_power_cut_while_a_taken_file_is_erased_is_no_wrong_file() {
        let host = Host::new();
        host.given(FILE);
        host.write("efi/first-boot.yaml", "\0\0\0\0");
        assert_eq!(host.configure().unwrap(), Configured::Settled(Role::Agent));
        assert_eq!(host.read("efi/first-boot.yaml"), None);
    }

    #[test]
    fn another_system_has_no_first_boot_file() {
        let host = Host::new();
        host.write("usr/lib/os-release", "ID=debian\n");
        host.write("efi/first-boot.yaml", FILE);
        assert!(matches!(host.configure(), Err(Error::OtherSystem)));
        assert_eq!(host.read("efi/first-boot.yaml").as_deref(), Some(FILE));
    }

    fn kernels(host: &Host) -> Vec<String> {
        let names = fs::read_dir(host.path("efi/EFI/Linux")).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Version 2 runs, with these kernels.
    fn with_kernels(names: &[&str]) -> (Host, Machine) {
        let host = Host::new();
        host.write("usr/lib/os-release", "IMAGE_ID=k3s\nIMAGE_VERSION=\"2\"\n");
        for name in names {
            host.write(&format!("efi/EFI/Linux/{name}"), "kernel");
        }
        let machine = Machine::at(host.0.path());
        (host, machine)
    }

    #[test]
    fn a_version_that_is_given_up_is_not_started_again() {
        let (host, machine) = with_kernels(&["k3s_1.efi", "k3s_2+1-2.efi"]);
        assert_eq!(machine.assessment().unwrap(), Assessment::OnTrial { left: 1, done: 2 });
        machine.give_up("k3s does not run").unwrap();
        assert_eq!(kernels(&host), ["k3s_1.efi", "k3s_2+0-2.efi"]);
        let outcome = Outcome::read(&machine).unwrap().unwrap();
        assert_eq!(outcome.to_string(), "2 was given up: k3s does not run");
    }

    #[test]
    fn a_good_version_is_not_given_up() {
        let (host, machine) = with_kernels(&["k3s_1.efi", "k3s_2.efi"]);
        machine.give_up("k3s does not run").unwrap();
        assert_eq!(kernels(&host), ["k3s_1.efi", "k3s_2.efi"]);
        machine.accept().unwrap();
        assert_eq!(Outcome::read(&machine).unwrap().unwrap().to_string(), "2 is good");
    }

    #[test]
    fn a_way_back_is_tried_as_a_new_version_is() {
        let (host, machine) = with_kernels(&["k3s_1.efi", "k3s_2.efi"]);
        assert_eq!(machine.roll_back(false).unwrap().as_str(), "1");
        assert_eq!(kernels(&host), ["k3s_1+3.efi", "k3s_2+0-0.efi"]);
        for names in [&["k3s_2.efi"][..], &["k3s_1+0-3.efi", "k3s_2.efi"]] {
            let (host, machine) = with_kernels(names);
            assert!(matches!(machine.roll_back(false), Err(Error::NoWayBack)), "{names:?}");
            assert_eq!(kernels(&host), names, "nothing has changed");
        }
    }
}
