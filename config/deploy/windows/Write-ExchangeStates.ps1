<#
.SYNOPSIS
Writes the states of this Exchange server for the textfile collector of windows_exporter.

.DESCRIPTION
Writes four metrics: which server components are active, which database copies are healthy, when the certificates expire
that Exchange and its organization use, and when this script last succeeded. It only reads; the role View-Only
Organization Management is enough, with the right to write to the directory of the textfile collector.

Run it every five minutes as a scheduled task, in the Exchange Management Shell of each server:

    Exchange: powershell.exe -NonInteractive -File Write-ExchangeStates.ps1 -Directory 'C:\Program Files\windows_exporter\textfile_inputs'

Limits: it was never run against an Exchange server. Where a command fails, the script fails, the file stays as it was, and
the alert MailsondeExchangeStatesStale tells it.

.PARAMETER Directory
The directory of windows_exporter's textfile collector.

.PARAMETER Server
The Exchange server to describe; this one by default.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory)] [string] $Directory,
    [string] $Server = $env:COMPUTERNAME
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

if (-not (Get-Command Get-ServerComponentState -ErrorAction SilentlyContinue)) {
    Add-PSSnapin Microsoft.Exchange.Management.PowerShell.SnapIn
}

$epoch = [DateTime]::new(1970, 1, 1, 0, 0, 0, [DateTimeKind]::Utc)
$lines = [System.Collections.Generic.List[string]]::new()

function Format-Label([string] $Value) {
    $Value.Replace('\', '\\').Replace('"', '\"').Replace("`r", ' ').Replace("`n", ' ')
}

function Format-Seconds([DateTime] $Time) {
    ($Time.ToUniversalTime() - $epoch).TotalSeconds.ToString('F0', [Globalization.CultureInfo]::InvariantCulture)
}

function Add-Metric([string] $Name, [string] $Help) {
    $lines.Add("# HELP $Name $Help")
    $lines.Add("# TYPE $Name gauge")
}

$self = Format-Label $Server

Add-Metric 'mailsonde_exchange_component_active' 'Whether a component of the server is active.'
foreach ($component in Get-ServerComponentState -Identity $Server) {
    # These two are inactive on a server in normal operation.
    if ($component.Component -in 'ForwardSyncDaemon', 'ProvisioningRps') { continue }
    $active = [int]("$($component.State)" -eq 'Active')
    $lines.Add("mailsonde_exchange_component_active{server=""$self"",component=""$(Format-Label $component.Component)""} $active")
}

Add-Metric 'mailsonde_exchange_database_copy_healthy' 'Whether a copy of a database is mounted or healthy.'
foreach ($copy in Get-MailboxDatabaseCopyStatus -Server $Server) {
    $healthy = [int]("$($copy.Status)" -in 'Mounted', 'Healthy')
    $lines.Add("mailsonde_exchange_database_copy_healthy{server=""$self"",database=""$(Format-Label $copy.DatabaseName)""} $healthy")
}

Add-Metric 'mailsonde_exchange_certificate_not_after_timestamp_seconds' 'When a certificate expires.'
$expiry = @{}
$authThumbprint = (Get-AuthConfig).CurrentCertificateThumbprint
foreach ($certificate in Get-ExchangeCertificate -Server $Server) {
    $uses = @("$($certificate.Services)" -split ',\s*' | Where-Object { $_ -and $_ -ne 'None' })
    if ($certificate.Thumbprint -eq $authThumbprint) { $uses += 'Auth' }
    foreach ($use in $uses) {
        # Several certificates may serve one use during a change; the newest one counts.
        if (-not $expiry.ContainsKey($use) -or $expiry[$use] -lt $certificate.NotAfter) { $expiry[$use] = $certificate.NotAfter }
    }
}
foreach ($use in $expiry.Keys | Sort-Object) {
    $lines.Add("mailsonde_exchange_certificate_not_after_timestamp_seconds{server=""$self"",use=""$(Format-Label $use)""} $(Format-Seconds $expiry[$use])")
}

Add-Metric 'mailsonde_exchange_states_written_timestamp_seconds' 'When these states were written.'
$lines.Add("mailsonde_exchange_states_written_timestamp_seconds{server=""$self""} $(Format-Seconds ([DateTime]::UtcNow))")

# The collector reads only *.prom: it never sees half a file.
$unfinished = Join-Path $Directory 'mailsonde_exchange.unfinished'
[IO.File]::WriteAllText($unfinished, ($lines -join "`n") + "`n", [Text.UTF8Encoding]::new($false))
Move-Item -Force -Path $unfinished -Destination (Join-Path $Directory 'mailsonde_exchange.prom')
