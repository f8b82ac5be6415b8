{
  machine.services.k3s.gracefulNodeShutdown = {
    enable = true;
    shutdownGracePeriod = "20s";
    shutdownGracePeriodCriticalPods = "5s";
  };
}
