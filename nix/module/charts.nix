# Helm charts: those that a server serves below /static/charts, and those that it installs as well.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.k3s;
  json = pkgs.formats.json { };
  required = description: mkOption {
    type = types.nonEmptyStr;
    inherit description;
  };

  # The chart as its repository has it.
  pull =
    {
      repo,
      name,
      version,
      hash,
      ...
    }:
    let
      isOci = lib.hasPrefix "oci://" repo;
      address = if isOci then repo else "--repo ${repo} ${name}";
      source = lib.removePrefix "https://" (lib.removePrefix "oci://" (if isOci then repo else "${repo}-${name}"));
    in
    pkgs.runCommand "${lib.replaceStrings [ "/" ":" ] [ "-" "-" ] source}-${version}.tgz"
      {
        outputHash = if hash == "" then lib.fakeHash else hash;
        outputHashAlgo = null;
        impureEnvVars = lib.fetchers.proxyImpureEnvVars;
        nativeBuildInputs = [
          pkgs.kubernetes-helm
          pkgs.cacert
        ];
      }
      ''
        export HOME=$TMPDIR
        helm pull ${address} --version ${version}
        mv ./*.tgz $out
      '';

  chart = types.submodule (
    { config, ... }:
    {
      options = {
        enable = mkOption {
          type = types.bool;
          default = true;
          description = "Whether the server has the chart.";
        };
        repo = required "Its repository, if `package` is not set; `oci://` ones too.";
        name = required "Its name there.";
        version = required "Its version there.";
        hash = mkOption {
          type = types.str;
          default = "";
          description = "The hash of what is fetched.";
        };
        package = mkOption {
          type = types.either types.path types.package;
          defaultText = lib.literalMD "the chart, fetched from `repo`";
          description = "The packaged chart.";
        };
        targetNamespace = mkOption {
          type = types.nonEmptyStr;
          default = "default";
          description = "The namespace of the release.";
        };
        createNamespace = mkOption {
          type = types.bool;
          default = false;
          description = "Whether to create that namespace.";
        };
        values = mkOption {
          type = types.either types.path types.attrs;
          default = { };
          description = "The chart's values. Everybody can read them in the Nix store.";
        };
        extraDeploy = mkOption {
          type = types.listOf (types.either types.path types.attrs);
          default = [ ];
          description = "Further objects, applied with the chart.";
        };
        extraFieldDefinitions = mkOption {
          inherit ((pkgs.formats.yaml_1_2 or pkgs.formats.yaml { })) type;
          default = { };
          example.spec.timeout = "60s";
          description = "Fields of the HelmChart object besides or instead of those from the other options.";
        };
      };
      config.package = lib.mkDefault (pull config);
    }
  );

  object =
    name: value:
    lib.recursiveUpdate {
      apiVersion = "helm.cattle.io/v1";
      kind = "HelmChart";
      metadata = {
        inherit name;
        namespace = "kube-system";
      };
      spec = {
        inherit (value) targetNamespace createNamespace;
        chart = "https://%{KUBERNETES_API}%/static/charts/${name}.tgz";
        bootstrap = false;
        valuesContent =
          if builtins.isAttrs value.values then builtins.toJSON value.values else builtins.readFile value.values;
      };
    } value.extraFieldDefinitions;

  # One list of the HelmChart and all that comes with it. Files are read when it is built, not at evaluation.
  manifest =
    name: value:
    let
      isFile = item: builtins.isPath item || builtins.isString item || lib.isDerivation item;
      list = items: json.generate "k3s-chart-${name}" {
        apiVersion = "v1";
        kind = "List";
        inherit items;
      };
      files = lib.filter isFile value.extraDeploy;
      objects = lib.filter (item: !isFile item) value.extraDeploy;
      whole = list ([ (object name value) ] ++ objects);
    in
    if files == [ ] then
      whole
    else
      pkgs.runCommand "k3s-chart-${name}" { nativeBuildInputs = [ pkgs.yq-go ]; } ''
        yq eval-all -o json '{
          "apiVersion": "v1", "kind": "List",
          "items": ([select(fileIndex == 0).items[]] + [select(fileIndex > 0)])
        }' ${whole} ${lib.escapeShellArgs (map toString files)} > $out
      '';

  served = lib.mapAttrs (_: value: value.package) (lib.filterAttrs (_: value: value.enable) cfg.autoDeployCharts) // cfg.charts;
  file = name: if lib.hasSuffix ".tgz" name then name else "${name}.tgz";
in
{
  options.services.k3s = {
    autoDeployCharts = mkOption {
      type = types.attrsOf chart;
      default = { };
      example = lib.literalExpression ''
        {
          app = {
            package = ./app-chart.tgz;
            values.replicaCount = 3;
            extraFieldDefinitions.spec.timeout = "60s";
          };
        }
      '';
      description = "Helm charts that a server installs. A manifest of the same name takes a chart's place. Of servers only.";
    };

    charts = mkOption {
      type = types.attrsOf (types.either types.path types.package);
      default = { };
      description = ''
        Packaged Helm charts that a server serves at `/static/charts/NAME.tgz`, for HelmChart objects of yours. Of servers
        only.
      '';
    };

    chartManifests = mkOption {
      type = types.attrsOf types.attrs;
      internal = true;
      readOnly = true;
      description = "What `autoDeployCharts` adds to the manifests.";
    };
  };

  config = {
    services.k3s.chartManifests = lib.mapAttrs (name: value: {
      inherit (value) enable;
      target = "${name}.yaml";
      source = manifest name value;
    }) cfg.autoDeployCharts;

    systemd.tmpfiles.settings."10-k3s" = lib.mkIf (cfg.enable && cfg.role == "server") (
      lib.mapAttrs' (
        name: package:
        lib.nameValuePair "/var/lib/rancher/k3s/server/static/charts/${file name}" { "L+".argument = "${package}"; }
      ) served
    );
  };
}
