{{- /* Nested values as --a.b.c=value: what Traefik's static configuration has, its flags have by the same names. Empty ones say nothing. */ -}}
{{- define "traefik.flags" -}}
{{- $path := .path -}}
{{- range $key, $value := .value }}
{{- $flag := printf "%s.%s" $path $key }}
{{- if kindIs "map" $value }}
{{- include "traefik.flags" (dict "path" $flag "value" $value) }}
{{- else if and (kindIs "slice" $value) (kindIs "map" (first $value)) }}
{{- range $index, $item := $value }}
{{- include "traefik.flags" (dict "path" (printf "%s[%d]" $flag $index) "value" $item) }}
{{- end }}
{{- else if kindIs "slice" $value }}
{{- with $value }}
- {{ printf "--%s=%s" $flag (join "," .) | quote }}
{{- end }}
{{- else if kindIs "float64" $value }}
- {{ printf "--%s=%s" $flag (toJson $value) | quote }}
{{- else if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- {{ printf "--%s=%v" $flag $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "traefik.entryPoint" -}}
{{- $path := printf "entryPoints.%s" .name }}
{{- $port := .port }}
- {{ printf "--%s.address=:%d/%s" $path (int64 $port.port) ($port.protocol | default "TCP" | lower) | quote }}
{{- $plain := pick $port "allowACMEByPass" "asDefault" "forwardedHeaders" "observability" "proxyProtocol" "transport" }}
{{- include "traefik.flags" (dict "path" $path "value" $plain) }}
{{- include "traefik.flags" (dict "path" (print $path ".http") "value" (pick $port "middlewares" "redirections")) }}
{{- if ($port.tls).enabled }}
- "--{{ $path }}.http.tls=true"
{{- include "traefik.flags" (dict "path" (print $path ".http.tls") "value" (omit $port.tls "enabled")) }}
{{- end }}
{{- if ($port.http3).enabled }}
- {{ printf "--%s.http3.advertisedPort=%d" $path (int64 (include "traefik.http3Port" $port)) | quote }}
{{- end }}
{{- end -}}

{{- define "traefik.http3Port" -}}
{{ .http3.advertisedPort | default .exposedPort | default .port }}
{{- end -}}

{{- define "traefik.arguments" -}}
{{- range .Values.globalArguments }}
- {{ . | quote }}
{{- end }}
- "--global.checkNewVersion=false"
- "--api=true"
- "--ping=true"
- "--ping.entryPoint=traefik"
{{- range $name, $port := .Values.ports }}
{{- if $port }}
{{- include "traefik.entryPoint" (dict "name" $name "port" $port) }}
{{- end }}
{{- end }}
{{- include "traefik.flags" (dict "path" "log" "value" .Values.logs.general) }}
{{- if .Values.logs.access.enabled }}
- "--accessLog=true"
{{- include "traefik.flags" (dict "path" "accessLog" "value" (omit .Values.logs.access "enabled")) }}
{{- end }}
{{- with .Values.metrics.prometheus }}
- "--metrics.prometheus=true"
{{- include "traefik.flags" (dict "path" "metrics.prometheus" "value" .) }}
{{- end }}
{{- range $name, $provider := .Values.providers }}
{{- if $provider.enabled }}
- "--providers.{{ $name }}=true"
{{- include "traefik.flags" (dict "path" (printf "providers.%s" $name) "value" (omit $provider "enabled" "publishedService")) }}
{{- if ($provider.publishedService).enabled }}
{{- $service := printf "%s/%s" $.Release.Namespace $.Release.Name }}
- "--providers.{{ $name }}.ingressEndpoint.publishedService={{ $provider.publishedService.pathOverride | default $service }}"
{{- end }}
{{- end }}
{{- end }}
{{- include "traefik.flags" (dict "path" "certificatesResolvers" "value" .Values.certificatesResolvers) }}
{{- range .Values.additionalArguments }}
- {{ . | quote }}
{{- end }}
{{- end -}}
