//! What a Debian or Ubuntu machine has to have installed to build and run the project.
