# The same machines; the test says what becomes of a node's password.
import ./multi-node.nix
