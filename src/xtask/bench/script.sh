# A single-node cluster by hand, as quick as it gets: a store (/opt/store.sh) and the components of libexec/k3s, with certificates, kubeconfigs and
# configuration files that are there already, and images that were imported before. Ends the components when it is asked to end.
# Needs NODE and ADDRESS. Other variables, such as GOGC, reach the components.
set -eu

bin=/opt/k3s/libexec/k3s
data=/var/lib/rancher/k3s
tls=$data/server/tls
cred=$data/server/cred
agent=$data/agent
api=https://127.0.0.1:6444
export PATH="$bin:$PATH"

mkdir -p /run/k3s "$agent/etc/cni/net.d"
rm -f "$agent"/etc/cni/net.d/*
cat > "$agent/etc/cni/net.d/10-bridge.conflist" <<'CNI'
{"cniVersion": "1.0.0", "name": "bridge", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.42.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CNI
# As administrator kube-controller-manager needs no service account for each of its controllers.
cat > /root/admin.kubeconfig <<ADMIN
{"apiVersion": "v1", "kind": "Config", "current-context": "admin", "contexts": [{"name": "admin", "context": {"cluster": "here", "user": "admin"}}],
 "clusters": [{"name": "here", "cluster": {"server": "$api", "certificate-authority": "$tls/server-ca.crt"}}],
 "users": [{"name": "admin", "user": {"client-certificate": "$tls/client-admin.crt", "client-key": "$tls/client-admin.key"}}]}
ADMIN

trap 'kill -TERM $nodes 2>/dev/null; kill -TERM $apiserver; wait $apiserver || true; kill -TERM $stores; wait; exit 0' TERM

sh /opt/store.sh &
stores=$!

kube-apiserver \
    --etcd-servers http://127.0.0.1:2379 --bind-address 127.0.0.1 --secure-port 6444 --advertise-address "$ADDRESS" \
    --allow-privileged --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --anonymous-auth=false \
    --cert-dir "$tls/temporary-certs" --endpoint-reconciler-type none --profiling=false \
    --service-cluster-ip-range 10.43.0.0/16 \
    --service-account-issuer https://kubernetes.default.svc.cluster.local \
    --service-account-signing-key-file "$tls/service.current.key" --service-account-key-file "$tls/service.key" \
    --tls-cert-file "$tls/serving-kube-apiserver.crt" --tls-private-key-file "$tls/serving-kube-apiserver.key" \
    --client-ca-file "$tls/client-ca.crt" --kubelet-certificate-authority "$tls/server-ca.crt" \
    --kubelet-client-certificate "$tls/client-kube-apiserver.crt" --kubelet-client-key "$tls/client-kube-apiserver.key" \
    --kubelet-preferred-address-types InternalIP \
    --requestheader-client-ca-file "$tls/request-header-ca.crt" --requestheader-allowed-names system:auth-proxy \
    --requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group \
    --requestheader-extra-headers-prefix X-Remote-Extra- \
    --proxy-client-cert-file "$tls/client-auth-proxy.crt" --proxy-client-key-file "$tls/client-auth-proxy.key" &
apiserver=$!

containerd -c "$agent/etc/containerd/config.toml" &
stores="$stores $!"

until [ -S /run/k3s/containerd/containerd.sock ]; do sleep 0.05; done
kubelet --config-dir "$agent/etc/kubelet.conf.d" --kubeconfig "$agent/kubelet.kubeconfig" \
    --hostname-override "$NODE" --node-ip "$ADDRESS" --read-only-port 0 &
nodes=$!

until curl -sf -o /dev/null --cacert "$tls/server-ca.crt" --cert "$tls/client-admin.crt" --key "$tls/client-admin.key" $api/readyz
do sleep 0.05; done
kube-controller-manager --kubeconfig /root/admin.kubeconfig --leader-elect=false --bind-address 127.0.0.1 \
    --service-account-private-key-file "$tls/service.current.key" --root-ca-file "$tls/server-ca.crt" --profiling=false \
    --tls-cert-file "$tls/kube-controller-manager/kube-controller-manager.crt" \
    --tls-private-key-file "$tls/kube-controller-manager/kube-controller-manager.key" &
nodes="$nodes $!"
kube-scheduler --kubeconfig "$cred/scheduler.kubeconfig" --leader-elect=false --bind-address 127.0.0.1 --profiling=false \
    --authorization-kubeconfig "$cred/scheduler.kubeconfig" --authentication-kubeconfig "$cred/scheduler.kubeconfig" \
    --tls-cert-file "$tls/kube-scheduler/kube-scheduler.crt" --tls-private-key-file "$tls/kube-scheduler/kube-scheduler.key" &
nodes="$nodes $!"
kube-proxy --proxy-mode nftables --kubeconfig "$agent/kubeproxy.kubeconfig" --cluster-cidr 10.42.0.0/16 \
    --hostname-override "$NODE" --healthz-bind-address 127.0.0.1 --conntrack-max-per-core 0 \
    --conntrack-tcp-timeout-established 0s --conntrack-tcp-timeout-close-wait 0s &
nodes="$nodes $!"
wait
