# services.k3s: each option of nixpkgs' module with its name, type and default, so that a configuration written for it
# evaluates unchanged; below each concept, what only this k3s has.
{ lib, ... }:
{
  # nixpkgs' own declaration of services.k3s, by its present and its former places.
  disabledModules = [
    "services/cluster/rancher"
    "services/cluster/rancher/default.nix"
    "services/cluster/k3s"
    "services/cluster/k3s/default.nix"
  ];

  imports = [
    ./node.nix
    ./command.nix
    ./unit.nix
    ./settings.nix
    ./manifests.nix
    ./charts.nix
    ./containers.nix
    ./kubelet.nix
    ./datastore.nix
    ./machine.nix
    ./checks.nix
    (lib.mkRemovedOptionModule [ "services" "k3s" "docker" ] "k3s docker option is no longer supported.")
  ];
}
