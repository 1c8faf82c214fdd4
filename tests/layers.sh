#!/usr/bin/env bash
# Do the archives keep to their layers?
#
# Two questions for each folder's archive, asked of all its members and not only
# of those that a test happens to pull in:
#
#   link      Does it link whole, with only what its row of STYLE.md's table
#             allows? A call upwards is an undefined symbol.
#   outside   Does it call the world behind the vtables (clocks, random sources,
#             files, sockets, threads, libuv, OpenSSL), or a library whose home
#             is elsewhere?
#
# `make check' runs it with srcdir, builddir, CC, LINK_FLAGS and the libraries
# in the environment.
set -uo pipefail

: "${srcdir:?}" "${builddir:?}" "${CC:?}"
cd "$builddir" || exit 1
passed=0
failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# name  archive  archives below it  libraries
layers()
{
	cat <<-'END'
	proto      client/proto   -                            PROTO
	base       node/base      proto                        BASE,PROTO
	os         node/os        base,proto                   UV,BASE,PROTO
	raftglue   raft-glue      base,proto                   RAFT,BASE,PROTO
	objects    objects        base,proto                   SQLITE,BASE,PROTO
	core       node/core      raftglue,objects,base,proto  RAFT,SQLITE,BASE,PROTO
	node       node           core,raftglue,objects,os,tls,base,proto  RAFT,SQLITE,CYAML,UV,SSL,BASE,PROTO
	session    client/session proto                        PROTO
	tls        client/tls     proto                        SSL,CRYPTO,PROTO
	client     client         session,tls,proto            UV,SSL,CRYPTO,PROTO
	END
}

archive()
{
	case $1 in
	proto) echo client/.libs/libproto.a ;;
	session) echo client/.libs/libsession.a ;;
	tls) echo client/.libs/libtls.a ;;
	client) echo client/.libs/libclient.a ;;
	raftglue) echo raft-glue/.libs/libraftglue.a ;;
	objects) echo objects/.libs/libobjects.a ;;
	*) echo "node/.libs/lib$1.a" ;;
	esac
}

# Symbols of the world outside, by subject, as extended regular expressions for
# the whole name. FORTIFY's, LFS's and ISO C's spellings (__x_chk, x64,
# __isoc99_x) count as x.
subject_clock='clock|clock_.*|time|gettimeofday|ftime|timespec_get|times'
subject_sleep='sleep|usleep|nanosleep|alarm|setitimer|timer_.*|timerfd_.*'
subject_random='rand|rand_r|srand|random|srandom|.rand48.*|arc4random.*|getrandom|getentropy|randombytes.*|RAND_.*'
subject_file='open|openat|creat|close|read|readv|pread|preadv.*|write|writev|pwrite|pwritev.*|lseek|fsync|fdatasync|sync|syncfs|sync_file_range|fallocate|posix_fallocate|posix_fadvise|ftruncate|truncate|rename|renameat.*|unlink|unlinkat|remove|mkdir|mkdirat|rmdir|link|symlink|stat|fstat|lstat|fstatat|statx|statfs|fstatfs|statvfs|access|chmod|fchmod|flock|lockf|fcntl|ioctl|opendir|readdir.*|closedir|fopen|fdopen|freopen|fclose|fread|fgets|getline|getc|fgetc|tmpfile|mkstemp|mkdtemp|mktemp|realpath'
subject_socket='socket|socketpair|bind|connect|listen|accept|accept4|send|sendto|sendmsg|recv|recvfrom|recvmsg|shutdown|getsockopt|setsockopt|getaddrinfo|getpeername|getsockname|pipe|pipe2|eventfd'
subject_wait='poll|ppoll|select|pselect|epoll_.*|io_uring_.*|inotify_.*'
subject_thread='pthread_.*|thrd_.*|mtx_.*|cnd_.*|sem_.*'
subject_memory='mmap|munmap|mprotect|madvise|mlock|mlock2|munlock|mlockall|brk|sbrk'
subject_process='fork|vfork|exec.*|posix_spawn.*|waitpid|wait|kill|raise|system|popen|signal|sigaction|exit|_exit|_Exit|quick_exit|prctl|setrlimit|getrlimit|getrusage|syscall|getpid|gettid|getuid|geteuid|gethostname|uname|sysconf'
subject_environment='getenv|secure_getenv|setenv|putenv|environ'
subject_console='printf|puts|putchar|vprintf|stdout|stdin|stderr|perror'
subject_libuv='uv_.*'
subject_tls='SSL_.*|BIO_.*|TLS_.*|X509_.*|PEM_.*'
subject_libcrypto='EVP_.*|OSSL_.*|OPENSSL_.*|CRYPTO_.*|HMAC.*|SHA[0-9].*|ERR_.*'
subject_sodium='sodium_.*|crypto_.*'
subject_raft='raft_.*'
subject_sqlite='sqlite3_.*'
subject_msgpack='msgpack_.*'
subject_cyaml='cyaml_.*'
pure='clock sleep random file socket wait thread memory process environment
console libuv tls cyaml'

# What a layer may not call; everything else of the list above is its business.
forbidden()
{
	case $1 in
	proto) echo "$pure libcrypto sodium raft sqlite" ;;
	base) echo "$pure raft sqlite msgpack" ;;
	raftglue) echo "$pure libcrypto sodium sqlite msgpack" ;;
	objects) echo "$pure libcrypto sodium raft msgpack" ;;
	core) echo "$pure libcrypto sodium raft sqlite msgpack" ;;
	os) echo "raft sqlite msgpack cyaml tls libcrypto sodium" ;;
	node) echo "raft sqlite msgpack libcrypto sodium" ;;
	session) echo "$pure libcrypto sodium raft sqlite msgpack" ;;
	tls)
		echo "sleep random socket wait memory process environment console \
			libuv raft sqlite msgpack cyaml sodium"
		;;
	client) echo "raft sqlite msgpack cyaml sodium" ;;
	esac
}

# Exceptions: layer, member, symbols, and why. A row without a use fails.
exceptions()
{
	cat <<-'END'
	base secret.o mmap,munmap,mprotect,madvise,mlock2,sysconf the arena is a locked mapping between guard pages
	base secret.o getrlimit,setrlimit,prctl a refused lock names its limit; no core file may hold a key
	base panic.o stderr the last words before abort
	base logline.o stderr where lines go until the node names another place
	session session.o stderr the last words before abort
	session routes.o stderr the last words before abort
	node ca.o ERR_clear_error,ERR_peek_last_error,ERR_reason_error_string,EVP_PKEY_Q_keygen,EVP_PKEY_free,EVP_sha256,OPENSSL_sk_num,OPENSSL_sk_push,OPENSSL_sk_value certificates are made here and nowhere else
	tls tls.o stderr the last words before abort
	END
}

say()
{
	if [ "$1" = ok ]; then
		passed=$((passed + 1))
		echo "ok   $2"
	else
		failed=$((failed + 1))
		echo "FAIL $2"
	fi
}

libs_of()
{
	local list=() name var
	for name in ${1//,/ }; do
		var=${name}_LIBS
		list+=("${!var:-}")
	done
	echo "${list[*]}"
}

check_link()
{
	local name=$1 folder=$2 below=$3 libs=$4 lower=() b
	local dummy=$work/main.c

	echo 'int main(void) { return 0; }' >"$dummy"
	if [ "$below" != - ]; then
		for b in ${below//,/ }; do
			lower+=("$(archive "$b")")
		done
	fi
	# shellcheck disable=SC2046,SC2086
	if $CC ${LINK_FLAGS:-} -fPIE -pie "$dummy" -Wl,--whole-archive \
		"$(archive "$name")" -Wl,--no-whole-archive \
		-Wl,--start-group ${lower[@]+"${lower[@]}"} -Wl,--end-group \
		$(libs_of "$libs") -o "$work/$name" 2>"$work/errors"; then
		say ok "link $folder"
	else
		grep -E 'undefined reference|error|cannot find' \
			"$work/errors" | sed 's/^/     /' | sort -u | head -20
		say FAIL "link $folder: it uses what its row does not allow"
	fi
}

# "member symbol" for all that an archive takes from elsewhere, our own archives
# not counted: what they may give is a question of linking.
undefined()
{
	local name

	for name in $(layers | cut -d' ' -f1); do
		nm --defined-only "$(archive "$name")" 2>/dev/null
	done | awk 'NF == 3 { print $3 }' | sort -u >"$work/ours"
	nm -A -u "$1" 2>/dev/null | awk -v list="$work/ours" '
	BEGIN { while ((getline line < list) > 0) ours[line] }
	{
		member = $1; sub(/:$/, "", member); sub(/^.*[:\/]/, "", member)
		sub(/^lib[a-z_]*_la-/, "", member)
		symbol = $NF; sub(/@.*/, "", symbol)
		if (symbol in ours) next
		sub(/^__isoc[0-9]*_/, "", symbol)
		if (symbol ~ /^__.*_chk$/) {
			sub(/^__/, "", symbol); sub(/_chk$/, "", symbol)
		}
		sub(/64$/, "", symbol); sub(/64_2$/, "_2", symbol)
		print member, symbol
	}' | sort -u
}

check_outside()
{
	local name=$1 folder=$2 subject var bad=0 member symbol

	undefined "$(archive "$name")" >"$work/undefined"
	for subject in $(forbidden "$name"); do
		var=subject_$subject
		while read -r member symbol; do
			if exceptions | awk -v l="$name" -v m="$member" \
				-v s="$symbol" '
				$1 == l && $2 == m {
					n = split($3, names, ",")
					for (i = 1; i <= n; i++)
						if (names[i] == s) found = 1
				}
				END { exit !found }'; then
				echo "$name $member $symbol" >>"$work/used"
				continue
			fi
			echo "     $folder: $member uses $symbol ($subject)"
			bad=1
		done < <(awk -v re="^(${!var})$" '$2 ~ re' "$work/undefined")
	done
	if [ $bad -eq 0 ]; then
		say ok "outside $folder"
	else
		say FAIL "outside $folder"
	fi
}

check_exceptions()
{
	local layer member symbols why s bad=0

	while read -r layer member symbols why; do
		[ -n "$layer" ] || continue
		for s in ${symbols//,/ }; do
			if ! grep -qx "$layer $member $s" "$work/used"; then
				echo "     no use: $layer $member $s"
				bad=1
			fi
		done
		if [ -z "$why" ]; then
			echo "     no reason: $layer $member"
			bad=1
		fi
	done < <(exceptions)
	if [ $bad -eq 0 ]; then
		say ok "exceptions are used and have a reason"
	else
		say FAIL "exceptions"
	fi
}

: >"$work/used"
while read -r name folder below libs; do
	check_link "$name" "$folder" "$below" "$libs"
	check_outside "$name" "$folder"
done < <(layers)
# Sanitizers call the world themselves; their builds are not the ones to judge.
check_exceptions

echo "# layers: $passed passed, $failed failed"
[ $failed -eq 0 ]
