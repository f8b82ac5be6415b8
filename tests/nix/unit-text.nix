# A service as systemd reads it.
{ lib }:
let
  value = one: if builtins.isBool one then lib.boolToString one else toString one;
  line = key: one: lib.concatMapStrings (one: "${key}=${value one}\n") (lib.toList one);
  section = name: keys: "[${name}]\n${lib.concatStrings (lib.mapAttrsToList line keys)}\n";
in
service:
builtins.unsafeDiscardStringContext (
  section "Unit" (
    {
      Description = service.description;
      After = toString service.after;
      Wants = toString service.wants;
    }
    // service.unitConfig
  )
  + section "Service" service.serviceConfig
  + section "Install" { WantedBy = toString service.wantedBy; }
)
