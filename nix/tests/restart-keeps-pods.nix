{
  machine = { };
}
