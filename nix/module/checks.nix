# What is wrong with a configuration, told when it is evaluated. Texts of nixpkgs' module are as they are there.
{ config, lib, ... }:
let
  inherit (lib) optional;
  cfg = config.services.k3s;
  isServer = cfg.role == "server";
  isAgent = cfg.role == "agent";
  inBoth = one: other: toString (lib.intersectLists (builtins.attrNames one) (builtins.attrNames other));
  overridden = inBoth cfg.autoDeployCharts cfg.manifests;
  overridden' = inBoth cfg.autoDeployCharts cfg.charts;

  # The flags that the command line names, as far as it can be read without the machine.
  flags = cfg.flagTable.${cfg.role};
  words = lib.concatMap (lib.splitString " ") (lib.drop 1 cfg.command);
  names = lib.filter (name: name != null) (
    map (
      word:
      let
        parts = builtins.match "--([a-z][a-z0-9-]*)(=.*)?" word;
      in
      if parts == null || builtins.elemAt parts 1 == "=false" then null else builtins.head parts
    ) words
  );
  complaint =
    name:
    if !flags ? ${name} then
      "k3s: --${name} is no flag of `k3s ${cfg.role}`, which would not start with it."
    else if flags.${name} ? refusal && !flags.${name} ? refusedValues && flags.${name}.default or "false" != "true" then
      "k3s: --${name} asks for ${flags.${name}.refusal.what}, which this version does not serve and so would not start; ${flags.${name}.refusal.instead}."
    else
      null;
in
{
  config = lib.mkIf cfg.enable {
    warnings =
      optional (!isServer && cfg.manifests != { })
        "k3s: Auto deploying manifests are only installed on server nodes (role == server), they will be ignored by this node."
      ++ optional (!isServer && cfg.autoDeployCharts != { })
        "k3s: Auto deploying Helm charts are only installed on server nodes (role == server), they will be ignored by this node."
      ++ optional (overridden != "")
        "k3s: The following auto deploying charts are overriden by manifests of the same name: ${overridden}."
      ++ optional (overridden' != "")
        "k3s: The following auto deploying charts are overriden by charts of the same name: ${overridden'}."
      ++ optional (!isServer && cfg.charts != { })
        "k3s: Helm charts are only made available to the cluster on server nodes (role == server), they will be ignored by this node."
      ++ optional (isAgent && cfg.configPath == null && cfg.serverAddr == "" && cfg.settings.server == null)
        "k3s: serverAddr or configPath (with 'server' key) should be set if role is 'agent'"
      ++ optional (isAgent && cfg.configPath == null && cfg.tokenFile == null && cfg.token == "")
        "k3s: token, tokenFile or configPath (with 'token' or 'token-file' keys) should be set if role is 'agent'"
      ++ optional (isAgent && (cfg.agentTokenFile != null || cfg.agentToken != ""))
        "k3s: agentToken and agentTokenFile should not be set if role is 'agent'"
      ++ optional (cfg.disableAgent && cfg.images != [ ])
        "k3s: Images are only imported on nodes with an enabled agent, they will be ignored by this node."
      ++ lib.filter (text: text != null) (map complaint (lib.unique names));

    assertions = [
      {
        assertion = isAgent -> !cfg.disableAgent;
        message = "k3s: disableAgent must be false if role is 'agent'";
      }
      {
        assertion = isAgent -> !cfg.clusterInit;
        message = "k3s: clusterInit must be false if role is 'agent'";
      }
    ];
  };
}
