# containerd's configuration, and the images that a node has without a registry.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.k3s;
  toml = pkgs.formats.toml { };

  template =
    if cfg.containerdConfigTemplate != null then
      pkgs.writeText "config.toml.tmpl" cfg.containerdConfigTemplate
    else if cfg.extraContainerdSettings != { } then
      pkgs.runCommand "config.toml.tmpl" { settings = toml.generate "containerd-settings" cfg.extraContainerdSettings; } ''
        { echo '{{ template "base" . }}'; cat $settings; } > $out
      ''
    else
      null;

  images = pkgs.linkFarm "k3s-images" (
    map (image: {
      inherit (image) name;
      path = image;
    }) cfg.images
  );
in
{
  options.services.k3s = {
    images = mkOption {
      type = types.listOf types.package;
      default = [ ];
      example = lib.literalExpression "[ config.services.k3s.package.airgap-images ]";
      description = ''
        Archives of images that containerd has before pods start, below {file}`/var/lib/rancher/k3s/agent/images/nixos`.
        Those that a node itself needs come with the package.
      '';
    };

    containerdConfigTemplate = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = lib.literalExpression ''
        '''
          {{ template "base" . }}
          [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.custom]
            runtime_type = "io.containerd.runc.v2"
        '''
      '';
      description = ''
        Template of containerd's configuration, at
        {file}`/var/lib/rancher/k3s/agent/etc/containerd/config.toml.tmpl`.
      '';
    };

    imageFolder = mkOption {
      type = types.package;
      internal = true;
      readOnly = true;
      default = images;
      description = "The folder of all archives.";
    };

    extraContainerdSettings = mkOption {
      inherit (toml) type;
      default = { };
      description = "Settings of containerd besides the built-in ones; instead of `containerdConfigTemplate`.";
    };
  };

  config = lib.mkIf cfg.enable {
    systemd.tmpfiles.settings."10-k3s" = {
      "/var/lib/rancher/k3s/agent/images/nixos" =
        if cfg.images == [ ] then { r = { }; } else { "L+".argument = "${cfg.imageFolder}"; };
    }
    // lib.optionalAttrs (template != null) {
      "/var/lib/rancher/k3s/agent/etc/containerd/config.toml.tmpl"."L+".argument = "${template}";
    };

    assertions = [
      {
        assertion = cfg.containerdConfigTemplate == null || cfg.extraContainerdSettings == { };
        message = "k3s: containerdConfigTemplate and extraContainerdSettings exclude each other";
      }
    ];
  };
}
