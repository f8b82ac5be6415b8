{
  description = "Stand-in for nixpkgs: its lib is nixpkgs' own, packages and NixOS are as small as our flake needs them";

  # `lib` is put beside this file by `cargo xtask nix`.
  outputs =
    { self }:
    let
      packages = system: import ./packages.nix { inherit lib system; };
      lib = import ./lib // {
        nixosSystem =
          {
            modules,
            specialArgs ? { },
            system ? "x86_64-linux",
          }:
          lib.evalModules {
            inherit specialArgs;
            modules = [
              ./nixos.nix
              { _module.args.pkgs = packages system; }
            ]
            ++ modules;
          };
      };
    in
    {
      inherit lib;
      legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] packages;
    };
}
