# shellcheck shell=bash
# Set-up shared by ./check and ./demo: installs what is missing and builds in
# build/. Sourced, with $root set to the top of the source tree.
#
# It asks nothing. What is missing is said, with the reason, before anything is
# installed; when nothing is missing, neither the network nor root is needed.

# use | Debian package | how to see that it is there | what it is for
#
#   use   build: to compile Holdfast; demo: for ./demo; check: for the tests
#   how   cmd NAME...      programs in the path
#         pkg NAME VERSION a library, by pkg-config, at least that version
#         hdr FILE         a header
#         py MODULE        a module of Debian's Python
#         rb LIBRARY       a library of Debian's Ruby
setup_table()
{
	cat <<-'END'
	build|gcc|cmd gcc|the C compiler
	build|libc6-dev|hdr stdio.h|the C library's headers
	build|make|cmd make|runs the build
	build|autoconf|cmd autoconf|makes ./configure
	build|automake|cmd automake|makes Makefile.in
	build|libtool|cmd libtoolize|builds libholdfast.so
	build|pkg-config|cmd pkg-config|finds the libraries
	build|libraft-dev|pkg raft 0.22|Raft; 0.22 because older ones can lose acknowledged writes
	build|libuv1-dev|pkg libuv 1.44|the event loop
	build|libmsgpack-dev|pkg msgpack 4.0|MessagePack, the encoding on the wire
	build|libcyaml-dev|pkg libcyaml 1.3|YAML, the configuration
	build|libsodium-dev|pkg libsodium 1.0.18|locked memory and authenticated encryption
	build|libsqlite3-dev|pkg sqlite3 3.40|SQLite, the stored state of objects
	build|libssl-dev|pkg libssl 3.0|hashes, signatures and TLS
	build|libbsd-dev|hdr bsd/sys/tree.h|balanced trees (a header)
	demo|python3|cmd python3|the demo's clients
	check|clang-14|cmd clang-14 clang|the second compiler, for its warnings
	check|clang-format-14|cmd clang-format-14 clang-format|the layout of the source
	check|clang-tidy-14|cmd clang-tidy-14 clang-tidy|static analysis
	check|python3|cmd python3|tests that speak to the server from outside
	check|python3-pynvim|py pynvim.msgpack_rpc|a MessagePack-RPC client that is not ours, in Python
	check|ruby-neovim|rb neovim/client|a MessagePack-RPC client that is not ours, in Ruby
	check|strace|cmd strace|shows that a write is synced before it is answered
	check|iproute2|cmd ip|three network namespaces as three hosts
	check|nftables|cmd nft|cuts between them, in one direction too
	END
}

setup_say()
{
	printf '%s\n' "$*"
}

setup_die()
{
	printf '\n%s\n' "$*" >&2
	exit 1
}

setup_has()
{
	local how=$1 name
	shift

	case $how in
	cmd)
		for name in "$@"; do
			command -v "$name" >/dev/null 2>&1 && return 0
		done
		return 1
		;;
	pkg)
		command -v pkg-config >/dev/null 2>&1 || return 1
		# Newer Debian calls the C library of MessagePack msgpack-c.
		[ "$1" = msgpack ] &&
			pkg-config --atleast-version="$2" msgpack-c && return 0
		pkg-config --atleast-version="$2" "$1"
		;;
	hdr)
		[ -e "/usr/include/$1" ] ||
			compgen -G "/usr/include/*/$1" >/dev/null
		;;
	# Debian's interpreters: another in the path does not see its packages.
	py) /usr/bin/python3 -c "import $1" >/dev/null 2>&1 ;;
	rb) /usr/bin/ruby -e "require '$1'" >/dev/null 2>&1 ;;
	esac
}

# Runs a command as root: we are, or sudo lets us without a question.
setup_as_root()
{
	if [ "$(id -u)" -eq 0 ]; then
		env DEBIAN_FRONTEND=noninteractive "$@"
	else
		sudo -n env DEBIAN_FRONTEND=noninteractive "$@"
	fi
}

setup_apt()
{
	setup_as_root apt-get -qq -o DPkg::Lock::Timeout=120 \
		-o Acquire::Retries=3 "$@"
}

# The newest version of a package that apt would take from the release itself.
setup_candidate()
{
	apt-cache policy "$1" | sed -n 's/^ *Candidate: *//p'
}

# apt knows a libraft-dev of at least 0.22, at any priority.
setup_raft_known()
{
	local version

	while read -r version; do
		dpkg --compare-versions "$version" ge 0.22~ && return 0
	done < <(apt-cache madison libraft-dev | awk -F'|' '{
		gsub(/ /, "", $2); print $2 }')
	return 1
}

# Debian 12 has libraft 0.22 in bookworm-backports only. The suite is read from
# the place that this machine already takes bookworm from.
setup_backports()
{
	local address list=/etc/apt/sources.list.d/holdfast-backports.list
	local codename

	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	[ -n "$codename" ] || setup_die "No release name in /etc/os-release."
	address=$(apt-get indextargets \
		--format '$(REPO_URI)|$(RELEASE)|$(CODENAME)' \
		'Created-By: Packages' | awk -F'|' -v c="$codename" '
		($2 == c || $3 == c) && $1 !~ /^cdrom:/ { print $1; exit }')
	[ -n "$address" ] ||
		setup_die "apt has no source for $codename to derive" \
			"$codename-backports from. Add that suite by hand," \
			"then start this again."
	setup_say "Adding $codename-backports from the machine's own source" \
		"($list)."
	echo "deb $address $codename-backports main" |
		setup_as_root tee "$list" >/dev/null
	setup_apt -o "Dir::Etc::sourcelist=$list" -o Dir::Etc::sourceparts=- \
		-o APT::Get::List-Cleanup=0 update >"$log" 2>&1 ||
		setup_die "apt-get could not read $codename-backports:" \
			"$(tail -20 "$log")"
}

# The names to install: libraft-dev with the suite or version that is new
# enough, because apt prefers the old one; others that a newer Debian renamed.
setup_resolve()
{
	local name version

	for name in "$@"; do
		case $name in
		libraft-dev)
			version=$(apt-cache madison libraft-dev |
				awk -F'|' '{ gsub(/ /, "", $2); print $2 }' |
				while read -r v; do
					dpkg --compare-versions "$v" ge 0.22~ &&
						dpkg --compare-versions "$v" lt 0.23~ &&
						echo "$v"
				done | head -1)
			[ -n "$version" ] ||
				setup_die "No source of apt has libraft 0.22."
			# Both halves, or apt keeps the old library.
			echo "libraft-dev=$version" "libraft0=$version"
			;;
		libmsgpack-dev)
			if [ -n "$(setup_candidate libmsgpack-c-dev)" ]; then
				echo libmsgpack-c-dev
			else
				echo libmsgpack-dev
			fi
			;;
		clang-14 | clang-format-14 | clang-tidy-14)
			if apt-cache show "$name" >/dev/null 2>&1; then
				echo "$name"
			else
				echo "${name%-14}"
			fi
			;;
		*) echo "$name" ;;
		esac
	done
}

# setup_packages USE...: installs what these uses need and is not there.
setup_packages()
{
	local use package how why missing=() names
	local log=$root/build/setup.log

	while IFS='|' read -r use package how why; do
		[[ " $* " == *" $use "* ]] || continue
		# shellcheck disable=SC2086
		setup_has $how && continue
		[ ${#missing[@]} -gt 0 ] || setup_say "Missing on this machine:"
		printf '  %-18s %s\n' "$package" "$why"
		missing+=("$package")
	done < <(setup_table)
	[ ${#missing[@]} -gt 0 ] || return 0

	command -v apt-get >/dev/null 2>&1 ||
		setup_die "Only Debian's packages are installed by this script" \
			"(there is no apt-get here): please install these."
	if [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; then
		setup_die "Installing needs root: start this as root, or where" \
			"sudo asks for no password." \
			"By hand: apt-get install ${missing[*]}" \
			"(libraft-dev from $(. /etc/os-release &&
				echo "${VERSION_CODENAME:-bookworm}")-backports)"
	fi
	setup_say "Installing them from Debian ..."
	mkdir -p "$root/build" || exit 1
	setup_apt update >"$log" 2>&1 ||
		setup_die "apt-get update failed: $(tail -20 "$log")"
	if [[ " ${missing[*]} " == *" libraft-dev "* ]] && ! setup_raft_known; then
		setup_backports
	fi
	names=$(setup_resolve "${missing[@]}") || exit 1
	# shellcheck disable=SC2086
	setup_apt install -y --no-install-recommends $names >"$log" 2>&1 ||
		setup_die "apt-get could not install ${names//$'\n'/ }:" \
			"$(tail -20 "$log")"
	while IFS='|' read -r use package how why; do
		[[ " ${missing[*]} " == *" $package "* ]] || continue
		# shellcheck disable=SC2086
		setup_has $how || setup_die "$package was installed, and it" \
			"still cannot be used: $how fails."
	done < <(setup_table)
	setup_say "Installed."
}

# Makes build/Makefile. Later changes of configure.ac or Makefile.am are the
# business of make.
setup_configure()
{
	local options=() log=$root/build/configure.log

	mkdir -p "$root/build" || exit 1
	if [ ! -e "$root/configure" ] || [ ! -e "$root/Makefile.in" ] ||
		[ ! -e "$root/build-aux/ltmain.sh" ]; then
		setup_say "Making ./configure ..."
		(cd "$root" && autoreconf -fi) >"$log" 2>&1 ||
			setup_die "autoreconf failed: $(tail -20 "$log")"
	fi
	if [ ! -e "$root/build/Makefile" ]; then
		setup_say "Configuring in build/ ..."
		# There we know the compiler, and no warning is let through.
		if (. /etc/os-release && [ "${VERSION_ID:-}" = 12 ]); then
			options+=(--enable-werror)
		fi
		(cd "$root/build" &&
			../configure -q ${options[@]+"${options[@]}"}) \
			>"$log" 2>&1 ||
			setup_die "configure failed: $(tail -20 "$log")"
	fi
}

setup_jobs()
{
	nproc 2>/dev/null || echo 2
}
