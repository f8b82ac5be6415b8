//! Flags that say which bucket of S3 holds snapshots: those of `k3s server`, and without `etcd-` as k3s' `etcd-snapshot` has them too.

use std::ffi::OsString;

use clap::Args;

/// Flags of `k3s server` for snapshots in S3, where its configuration does not have them.
#[derive(Debug, Args)]
#[command(next_help_heading = "S3")]
pub(super) struct BucketFlags {
    /// Also work on the snapshots in S3
    #[arg(long = "etcd-s3", visible_alias = "s3")]
    s3: bool,
    /// Who serves S3, as HOST or HOST:PORT
    #[arg(long = "etcd-s3-endpoint", visible_alias = "s3-endpoint", value_name = "HOST")]
    endpoint: Option<OsString>,
    /// Authorities of its certificate
    #[arg(long = "etcd-s3-endpoint-ca", visible_alias = "s3-endpoint-ca", value_name = "FILE")]
    endpoint_ca: Option<OsString>,
    /// Do not check its certificate
    #[arg(long = "etcd-s3-skip-ssl-verify", visible_alias = "s3-skip-ssl-verify")]
    skip_ssl_verify: bool,
    /// Access key; better AWS_ACCESS_KEY_ID or the configuration file, as a command line is for all to see
    #[arg(long = "etcd-s3-access-key", visible_alias = "s3-access-key", value_name = "KEY")]
    access_key: Option<OsString>,
    /// Secret key; better AWS_SECRET_ACCESS_KEY or the configuration file
    #[arg(long = "etcd-s3-secret-key", visible_alias = "s3-secret-key", value_name = "KEY")]
    secret_key: Option<OsString>,
    /// Token that temporary keys come with; better AWS_SESSION_TOKEN
    #[arg(long = "etcd-s3-session-token", visible_alias = "s3-session-token", value_name = "TOKEN")]
    session_token: Option<OsString>,
    /// The bucket
    #[arg(long = "etcd-s3-bucket", visible_alias = "s3-bucket", value_name = "NAME")]
    bucket: Option<OsString>,
    /// auto, dns or path
    #[arg(long = "etcd-s3-bucket-lookup-type", visible_alias = "s3-bucket-lookup-type", value_name = "TYPE")]
    bucket_lookup_type: Option<OsString>,
    /// Its region
    #[arg(long = "etcd-s3-region", visible_alias = "s3-region", value_name = "NAME")]
    region: Option<OsString>,
    /// Folder in it
    #[arg(long = "etcd-s3-folder", visible_alias = "s3-folder", value_name = "NAME")]
    folder: Option<OsString>,
    /// Proxy on the way, or none
    #[arg(long = "etcd-s3-proxy", visible_alias = "s3-proxy", value_name = "URL")]
    proxy: Option<OsString>,
    /// Secret in kube-system that has these settings
    #[arg(long = "etcd-s3-config-secret", visible_alias = "s3-config-secret", value_name = "NAME")]
    config_secret: Option<OsString>,
    /// Talk to S3 without TLS
    #[arg(long = "etcd-s3-insecure", visible_alias = "s3-insecure")]
    insecure: bool,
    /// How long one operation may take
    #[arg(long = "etcd-s3-timeout", visible_alias = "s3-timeout", value_name = "TIME")]
    timeout: Option<OsString>,
    /// How many snapshots of one name stay in S3
    #[arg(long = "etcd-s3-retention", visible_alias = "s3-retention", value_name = "COUNT")]
    retention: Option<OsString>,
}

impl BucketFlags {
    /// These flags as a server's own.
    pub(super) fn into_args(self) -> impl Iterator<Item = OsString> {
        let switches = [
            ("--etcd-s3", self.s3),
            ("--etcd-s3-skip-ssl-verify", self.skip_ssl_verify),
            ("--etcd-s3-insecure", self.insecure),
        ];
        let texts = [
            ("--etcd-s3-endpoint", self.endpoint),
            ("--etcd-s3-endpoint-ca", self.endpoint_ca),
            ("--etcd-s3-access-key", self.access_key),
            ("--etcd-s3-secret-key", self.secret_key),
            ("--etcd-s3-session-token", self.session_token),
            ("--etcd-s3-bucket", self.bucket),
            ("--etcd-s3-bucket-lookup-type", self.bucket_lookup_type),
            ("--etcd-s3-region", self.region),
            ("--etcd-s3-folder", self.folder),
            ("--etcd-s3-proxy", self.proxy),
            ("--etcd-s3-config-secret", self.config_secret),
            ("--etcd-s3-timeout", self.timeout),
            ("--etcd-s3-retention", self.retention),
        ];
        let switches = switches.into_iter().filter(|(_, on)| *on).map(|(flag, _)| OsString::from(flag));
        let texts = texts.into_iter().filter_map(|(flag, text)| Some([OsString::from(flag), text?]));
        switches.chain(texts.flatten())
    }
}
