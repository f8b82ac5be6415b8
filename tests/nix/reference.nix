# The options of services.k3s, for docs/nixos-options.md.
{ lib }:
let
  pkgs = import ./nixpkgs/packages.nix { inherit lib; system = "x86_64-linux"; };
  evaluated = lib.evalModules {
    modules = [
      ./nixpkgs/nixos.nix
      ../../nix/module
      { _module.args.pkgs = pkgs; }
    ];
  };
  inherited = map builtins.head (import ./options.nix);
  isOurs = one: lib.hasPrefix "services.k3s." one.name && !one.internal && one.visible;
  text = value: if builtins.isString value then value else value.text or (toString value);
in
map (
  one:
  let
    name = lib.removePrefix "services.k3s." one.name;
  in
  {
    inherit name;
    inherit (one) type;
    default = if one ? default then text one.default else null;
    description = text one.description;
    inherited = builtins.elem name inherited;
  }
) (lib.filter isOurs (lib.optionAttrSetToDocList evaluated.options))
