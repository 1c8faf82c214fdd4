# A MessagePack-RPC client that is not ours (Debian's ruby-neovim), pipelined:
# many requests are out before the first answer is read, answers are matched by
# id. Usage: stock_client.rb SOCKET
require "neovim"
require "neovim/connection"
require "neovim/event_loop"

connection = Neovim::Connection.unix(ARGV[0])

# Greets as an editor's client does; the server passes over what it does not know.
connection.write([2, "nvim_set_client_info", ["ruby-client", {}, "host", {}, {}]])
N = 200
N.times do |i|
  connection.write([0, 1000 + i, "call",
                    ["kv/ruby-#{i % 7}", "incr", { "key" => "n" }]])
end
connection.write([0, 9000, "call",
                  ["rate_limiter/ruby", "put_policy",
                   { "limit" => 5, "period_ms" => 60_000 }]])
connection.flush
sums = Hash.new(0)
answers = {}
(N + 1).times do
  kind, id, error, result = connection.read
  raise "not a response: #{kind}" unless kind == 1
  raise "error #{error}" if error
  raise "answered twice: #{id}" if answers.key?(id)
  answers[id] = result
end
N.times do |i|
  value = answers.fetch(1000 + i).fetch("value")
  sums[i % 7] = [sums[i % 7], value].max
end
raise "counters #{sums}" unless sums.values.sum == N
allowed = 8.times.count do |i|
  connection.write([0, 9100 + i, "call",
                    ["rate_limiter/ruby", "check", { "key" => "k" }]])
  connection.flush
  connection.read.fetch(3).fetch("allowed")
end
raise "allowed #{allowed} of 5" unless allowed == 5
connection.write([0, 9999, "nvim_get_api_info", []])
connection.flush
_, id, error, = connection.read
raise "greeting #{id} #{error}" unless id == 9999 && error.is_a?(Hash)
puts "ruby: #{N + 9} calls"
