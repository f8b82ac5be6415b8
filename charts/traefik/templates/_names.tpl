{{- define "traefik.image" -}}
{{- $registry := .Values.global.systemDefaultRegistry | default .Values.image.registry -}}
{{- if $registry }}{{ $registry }}/{{ end -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "traefik.instance" -}}
{{ .Release.Name }}-{{ .Release.Namespace }}
{{- end -}}

{{- define "traefik.selector" -}}
app.kubernetes.io/name: traefik
app.kubernetes.io/instance: {{ include "traefik.instance" . }}
{{- end -}}

{{- define "traefik.labels" -}}
{{ include "traefik.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}
