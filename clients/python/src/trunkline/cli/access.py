"""login, logout, context, whoami, keys, users, health, quotas, completion."""

import dataclasses
import sys
import time

import click

from trunkline import Client
from trunkline._shared.credentials import tokens_of
from trunkline._shared.enums import names_of
from trunkline._shared.profiles import Profile, check_name
from trunkline.api.options.v1.policy_pb2 import Role
from trunkline.cli.app import Setup, pass_setup
from trunkline.cli.exits import Exit
from trunkline.cli.output import emit, emit_one, output_option
from trunkline.errors import ConfigurationError

_WHO = (
    ("organisation", "org_slug"),
    ("name", "actor_name"),
    ("kind", "actor_kind"),
    ("role", "role"),
    ("expires", "expire_time"),
)
_KEYS = (
    ("key", "key_id"),
    ("name", "display_name"),
    ("role", "role"),
    ("prefix", "prefix"),
    ("created", "create_time"),
    ("expires", "expire_time"),
    ("revoked", "revoke_time"),
    ("last used", "last_used_time"),
)
_USERS = (
    ("user", "user_id"),
    ("email", "email"),
    ("name", "display_name"),
    ("role", "role"),
    ("state", "state"),
    ("last login", "last_login_time"),
)
_QUOTAS = (("quota", "name"), ("used", "used"), ("limit", "limit"), ("unit", "unit"))
_ROLES = click.Choice([name.lower() for name in names_of(Role)], case_sensitive=False)


@click.command()
@click.option("--org", help="The organisation's short name.")
@click.option("--email", help="Your e-mail address.")
@click.option("--api-key", is_flag=True, help="Keep an API key instead of logging in.")
@click.option("--stdin", "from_stdin", is_flag=True, help="Read the secret from standard input.")
@pass_setup
def login(
    setup: Setup, org: str | None, email: str | None, api_key: bool, from_stdin: bool
) -> None:
    """Log in, and keep the tokens (or an API key) in the profile."""
    current, known = setup.profiles.read()
    name = check_name(setup.profile or setup.environment.get("TRUNKLINE_PROFILE") or current)
    profile = known.get(name, Profile(name))
    address = setup.environment.get("TRUNKLINE_ADDRESS")
    if address:
        profile = dataclasses.replace(profile, address=address)
    if api_key:
        secret = _secret("API key", from_stdin)
        with _client(profile, secret) as client:
            who = client.identity.who_am_i()
        secrets: dict[str, object] = {"api_key": secret}
    else:
        profile = dataclasses.replace(
            profile,
            org=org or profile.org or click.prompt("Organisation"),
            email=email or profile.email or click.prompt("E-mail"),
        )
        password = _secret("Password", from_stdin)
        with _client(profile, None) as client:
            opened = client.identity.login(profile.org or "", profile.email or "", password)
        tokens = tokens_of(opened.tokens)
        with _client(profile, tokens.access) as client:
            who = client.identity.who_am_i()
        secrets = {"tokens": dataclasses.asdict(tokens)}
    setup.profiles.write_secrets(name, secrets)
    setup.profiles.write(current if known else name, {**known, name: profile})
    role = Role.Name(who.role).removeprefix("ROLE_").lower()
    click.echo(f"Logged in to {who.org_slug} at {profile.address} as {who.actor_name} ({role}).")


def _client(profile: Profile, secret: str | None) -> Client:
    return Client(profile.address, api_key=secret, tls=profile.tls, ca_file=profile.ca_file)


def _secret(what: str, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\n")
    secret: str = click.prompt(what, hide_input=True)
    return secret


@click.command()
@click.option("--all", "everywhere", is_flag=True, help="End all log-ins of the user.")
@pass_setup
def logout(setup: Setup, everywhere: bool) -> None:
    """End the log-in and forget its tokens."""
    current, _ = setup.profiles.read()
    name = setup.profile or current
    if "tokens" in setup.profiles.secrets(name):
        with setup.client() as client:
            client.identity.logout(all_sessions=everywhere)
    setup.profiles.write_secrets(name, None)
    click.echo("Logged out.")


@click.group()
def context() -> None:
    """Profiles: which server, and who one is there."""


@context.command("list")
@pass_setup
def context_list(setup: Setup) -> None:
    """List the profiles; a star marks the current one."""
    current, known = setup.profiles.read()
    for name, profile in sorted(known.items()):
        mark = "*" if name == current else " "
        who = f"{profile.org}/{profile.email}" if profile.email else ""
        click.echo(f"{mark} {name}  {profile.address}  {who}".rstrip())


@context.command("use")
@click.argument("name")
@pass_setup
def context_use(setup: Setup, name: str) -> None:
    """Make a profile the current one."""
    _, known = setup.profiles.read()
    if name not in known:
        raise ConfigurationError(
            f"There is no profile {name!r}.", remedy="See `trunkline context list`."
        )
    setup.profiles.write(name, known)


@context.command("set")
@click.argument("name")
@click.option("--server", help="host:port, or https://host:port.")
@click.option("--tls/--no-tls", default=None, help="Speak TLS or not, whatever the address.")
@click.option("--ca-file", type=click.Path(exists=True, dir_okay=False), help="Whom to trust.")
@click.option("--org", help="The organisation's short name.")
@click.option("--email", help="Your e-mail address.")
@pass_setup
def context_set(
    setup: Setup,
    name: str,
    server: str | None,
    tls: bool | None,
    ca_file: str | None,
    org: str | None,
    email: str | None,
) -> None:
    """Make or change a profile."""
    current, known = setup.profiles.read()
    profile = known.get(check_name(name), Profile(name))
    changed = Profile(
        name,
        address=server or profile.address,
        tls=profile.tls if tls is None else tls,
        ca_file=ca_file or profile.ca_file,
        org=org or profile.org,
        email=email or profile.email,
    )
    setup.profiles.write(current if known else name, {**known, name: changed})


@click.command()
@output_option
@pass_setup
def whoami(setup: Setup, output: str) -> None:
    """Show the organisation, name and role of the credential in use."""
    with setup.client() as client:
        emit_one(client.identity.who_am_i(), _WHO, output)


@click.command()
@click.argument("service", default="")
@pass_setup
def health(setup: Setup, service: str) -> int:
    """Ask whether the server, or one of its services, is ready."""
    with setup.client() as client:
        started = time.monotonic()
        status = client.health(service)
        click.echo(f"{status} ({client.address}, {(time.monotonic() - started) * 1e3:.0f} ms)")
    return Exit.DONE if status == "SERVING" else Exit.TRY_LATER


@click.command()
@output_option
@pass_setup
def quotas(setup: Setup, output: str) -> None:
    """Show what the organisation may use, and has used."""
    with setup.client() as client:
        emit(client.ops.quotas(), _QUOTAS, output)


@click.group()
def keys() -> None:
    """API keys."""


@keys.command("list")
@click.option("--revoked", is_flag=True, help="Show revoked ones, too.")
@output_option
@pass_setup
def keys_list(setup: Setup, revoked: bool, output: str) -> None:
    """List the organisation's API keys."""
    with setup.client() as client:
        emit(client.identity.list_api_keys(show_revoked=revoked), _KEYS, output)


@keys.command("create")
@click.argument("name")
@click.option("--role", type=_ROLES, required=True)
@pass_setup
def keys_create(setup: Setup, name: str, role: str) -> None:
    """Create an API key. Its secret is printed to standard output, this once."""
    with setup.client() as client:
        made = client.identity.create_api_key(name, role)
    click.echo(f"Created {made.api_key.key_id}. Keep the secret: it is shown once.", err=True)
    click.echo(made.secret)


@keys.command("rotate")
@click.argument("key_id")
@pass_setup
def keys_rotate(setup: Setup, key_id: str) -> None:
    """Give a key a second secret; the first one stays good for a while."""
    with setup.client() as client:
        made = client.identity.rotate_api_key(key_id)
    click.echo("Keep the new secret: it is shown once.", err=True)
    click.echo(made.secret)


@keys.command("revoke")
@click.argument("key_id")
@pass_setup
def keys_revoke(setup: Setup, key_id: str) -> None:
    """End a key at once, with all its secrets."""
    with setup.client() as client:
        client.identity.revoke_api_key(key_id)
    click.echo(f"Revoked {key_id}.")


@click.group()
def users() -> None:
    """Users of the organisation."""


@users.command("list")
@output_option
@pass_setup
def users_list(setup: Setup, output: str) -> None:
    """List users."""
    with setup.client() as client:
        emit(client.identity.list_users(), _USERS, output)


@users.command("create")
@click.argument("email")
@click.argument("name")
@click.option("--role", type=_ROLES, required=True)
@pass_setup
def users_create(setup: Setup, email: str, name: str, role: str) -> None:
    """Create a user. The password made for them is printed to standard output, this once."""
    with setup.client() as client:
        made = client.identity.create_user(email, name, role)
    click.echo(f"Created {made.user.user_id}.", err=True)
    click.echo(made.generated_password)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete this command: eval "$(trunkline completion bash)"."""
    from click.shell_completion import get_completion_class

    from trunkline.cli.app import root

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(root, {}, "trunkline", "_TRUNKLINE_COMPLETE").source())


COMMANDS = (login, logout, context, whoami, health, quotas, keys, users, completion)
