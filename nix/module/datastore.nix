# Where a server keeps the cluster's state, and the snapshots of it.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.services.k3s;
  optional = type: description: mkOption {
    type = types.nullOr type;
    default = null;
    inherit description;
  };
in
{
  options.services.k3s = {
    datastore = {
      endpoint = optional types.str ''
        `sqlite:///FILE`; for several servers `https://HOST:2379,…` of an etcd, `postgres://…`, `mysql://…` or `nats://…`.
        SQLite below the data directory if null.
      '';
      caFile = optional types.path "Certificate authority of an https datastore; the operating system's if null.";
      certFile = optional types.path "Certificate to show it.";
      keyFile = optional types.path "Its key.";
    };

    snapshots = {
      schedule = optional types.str "When to take snapshots, in cron's format and local time; never if null.";
      retention = optional types.ints.unsigned "Scheduled snapshots to keep; 0 keeps all, null five.";
      dir = optional types.path "Where snapshots go; below the data directory if null.";
      compress = mkOption {
        type = types.bool;
        default = false;
        description = "Whether snapshots are compressed.";
      };
    };
  };

  config.services.k3s.settings = lib.mkIf (cfg.role == "server") (
    lib.filterAttrs (_: value: value != null) {
      datastore-endpoint = cfg.datastore.endpoint;
      datastore-cafile = cfg.datastore.caFile;
      datastore-certfile = cfg.datastore.certFile;
      datastore-keyfile = cfg.datastore.keyFile;
      snapshot-schedule-cron = cfg.snapshots.schedule;
      snapshot-retention = cfg.snapshots.retention;
      snapshot-dir = cfg.snapshots.dir;
      snapshot-compress = if cfg.snapshots.compress then true else null;
    }
  );
}
