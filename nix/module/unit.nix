# The systemd unit. What is in it agrees with the units that packages for other systems hold.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.k3s;
  credential = name: file: lib.optional (file != null) "${name}:${toString file}";
in
{
  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];

    # Of pods' scopes: the service ends them before systemd does.
    systemd.units."cri-containerd-.scope" = {
      overrideStrategy = "asDropin";
      text = builtins.readFile ../../images/systemd/cri-containerd-.scope.d/k3s.conf;
    };

    systemd.services.k3s = {
      description = "k3s service";
      after = [
        "firewall.service"
        "network-online.target"
        "dbus.socket"
      ];
      wants = [
        "firewall.service"
        "network-online.target"
      ];
      wantedBy = [ "multi-user.target" ];
      path = import ../host-programs.nix pkgs ++ lib.optional config.boot.zfs.enabled config.boot.zfs.package;

      # A node that nobody can reach is tried for ever.
      unitConfig.StartLimitIntervalSec = 0;

      serviceConfig = {
        Type = "notify";
        ExecStart = lib.concatStringsSep " \\\n " cfg.command;
        # The configuration is read again; pods and programs that it does not change go on.
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        ExecStop = lib.mkIf cfg.stopPods "${cfg.package}/bin/k3s stop --all";
        EnvironmentFile = lib.mkIf (cfg.environmentFile != null) cfg.environmentFile;
        LoadCredential = credential "token-file" cfg.tokenFile ++ credential "agent-token-file" cfg.agentTokenFile;
        # The first start makes keys, and a machine without a clock waits for the time.
        TimeoutStartSec = 0;
        WatchdogSec = "2min";
        Restart = "always";
        RestartSec = "5s";
        # Wrong data, a failed disk, a refusal and a wrong configuration do not pass by trying again.
        RestartPreventExitStatus = "65 74 77 78";
        # Pods outlive the service; k3s itself ends its components.
        KillMode = "process";
        Delegate = "yes";
        DelegateSubgroup = "supervisor";
        OOMScoreAdjust = -999;
        LimitNOFILE = 1048576;
        LimitNPROC = "infinity";
        LimitCORE = "infinity";
        TasksMax = "infinity";
      };
    };
  };
}
