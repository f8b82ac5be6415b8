# Manifests that a server applies: one folder in the store behind one link, so that a manifest which leaves the
# configuration leaves the machine at the next switch.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.k3s;
  # JSON is YAML that nobody reads in two ways.
  format = pkgs.formats.json { };

  isManifest = name: lib.any (ending: lib.hasSuffix ending name) [ ".yaml" ".yml" ".json" ];

  manifest = types.submodule (
    { name, config, options, ... }:
    {
      options = {
        enable = mkOption {
          type = types.bool;
          default = true;
          description = "Whether the server has the manifest.";
        };
        target = mkOption {
          type = types.nonEmptyStr;
          defaultText = lib.literalMD "the attribute's name, ending in `.yaml` unless it has an ending";
          description = "Name of its file.";
        };
        content = mkOption {
          type = types.nullOr (types.either types.attrs (types.listOf types.attrs));
          default = null;
          description = "The object, or several as a list.";
        };
        source = mkOption {
          type = types.path;
          defaultText = lib.literalMD "a file with `content`";
          description = "A file with the objects.";
        };
      };
      config = {
        target = lib.mkDefault (if isManifest name then name else "${name}.yaml");
        source = lib.mkIf (config.content != null) (
          lib.mkDerivedConfig options.content (
            content:
            format.generate "k3s-manifest-${baseNameOf name}" (
              if builtins.isList content then
                {
                  apiVersion = "v1";
                  kind = "List";
                  items = content;
                }
              else
                content
            )
          )
        );
      };
    }
  );

  enabled = lib.filterAttrs (_: one: one.enable) (cfg.chartManifests // cfg.manifests);
  # The mark has objects go with their file. The folder is there without manifests too, or the last one's would stay.
  folder = pkgs.linkFarm "k3s-manifests" (
    [
      {
        name = ".authoritative";
        path = pkgs.writeText "authoritative" "";
      }
    ]
    ++ lib.mapAttrsToList (_: one: {
      name = one.target;
      path = one.source;
    }) enabled
  );
in
{
  options.services.k3s.manifestFolder = mkOption {
    type = types.package;
    internal = true;
    readOnly = true;
    default = folder;
    description = "The folder of all manifests.";
  };

  options.services.k3s.manifests = mkOption {
    type = types.attrsOf manifest;
    default = { };
    example = lib.literalExpression ''
      {
        deployment.source = ./deployment.yaml;
        app.content = {
          apiVersion = "v1";
          kind = "Namespace";
          metadata.name = "app";
        };
      }
    '';
    description = ''
      Objects that a server applies at its start and whenever they change. They are below
      {file}`/var/lib/rancher/k3s/server/manifests/nixos`; when a manifest leaves the configuration, its objects are
      deleted. Of servers only; several servers have to have the same.
    '';
  };

  config = lib.mkIf (cfg.enable && cfg.role == "server") {
    systemd.tmpfiles.settings."10-k3s"."/var/lib/rancher/k3s/server/manifests/nixos"."L+".argument =
      "${cfg.manifestFolder}";
  };
}
