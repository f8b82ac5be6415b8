# Runs in the guest, brought by a credential: the image under test holds nothing of this.
# A request is a line "ID SECONDS BASE64(script)", its answer a line "ID STATUS BASE64(stdout) BASE64(stderr)"; requests run side by side.
# The port can be opened once only and gives nothing while the other end is away: hence it stays open.
port=/dev/virtio-ports/driver
while [ ! -e "$port" ]; do sleep 0.1; done
exec 3<>"$port" 4>/run/driver.lock
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
[ ! -e /etc/rancher/environment ] || . /etc/rancher/environment
while :; do
    IFS=' ' read -r -u3 id seconds script || { sleep 0.2; continue; }
    [ -n "$script" ] || continue
    (
        dir=$(mktemp -d /run/driver.XXXXXX)
        base64 -d <<<"$script" > "$dir/script"
        cd /root
        timeout --kill-after=5 "$seconds" bash "$dir/script" 3>&- 4>&- < /dev/null > "$dir/out" 2> "$dir/err"; status=$?
        flock 4
        { printf '%s %s ' "$id" "$status"; base64 -w0 "$dir/out"; printf ' '; tail -c 8192 "$dir/err" | base64 -w0; printf '\n'; } >&3
        rm -rf "$dir"
    ) &
done
