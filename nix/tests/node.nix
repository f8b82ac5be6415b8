# What the machines of all tests have: a lean node, and an image for pods.
{
  config,
  lib,
  pkgs,
  ...
}:
{
  virtualisation.memorySize = lib.mkDefault 2048;
  virtualisation.diskSize = 4096;
  virtualisation.cores = 2;

  services.k3s = {
    enable = true;
    openFirewall = true;
    # Emulated processors start few pods at a time.
    disable = lib.mkIf (config.services.k3s.role == "server") [
      "local-storage"
      "metrics-server"
      "traefik"
    ];
    images = [
      (pkgs.dockerTools.buildImage {
        name = "docker.io/k3s-rs/demo";
        tag = "0.1.0";
        copyToRoot = pkgs.buildEnv {
          name = "demo";
          paths = [ pkgs.pkgsStatic.busybox ];
        };
        config.Cmd = [
          "httpd"
          "-f"
          "-p"
          "8080"
        ];
      })
    ];
  };
  # The journal is looked at after a reboot.
  services.journald.storage = "persistent";
}
